"""What a release means: pure and synchronous."""
