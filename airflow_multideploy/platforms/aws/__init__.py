"""Kinds on AWS."""
