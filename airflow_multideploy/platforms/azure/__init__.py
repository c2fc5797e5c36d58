"""Kinds on Azure."""
