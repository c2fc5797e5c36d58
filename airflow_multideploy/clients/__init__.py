"""How calls are made, and nothing of releases."""
