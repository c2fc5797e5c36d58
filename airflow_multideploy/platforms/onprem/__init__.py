"""Hosts and APIs of your own."""
