"""Pipelines elsewhere, to which a release is handed."""
