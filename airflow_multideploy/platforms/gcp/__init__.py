"""Kinds on Google Cloud."""
