"""Kubernetes, Helm and Nomad."""
