"""Images: the registry, and the builder."""
