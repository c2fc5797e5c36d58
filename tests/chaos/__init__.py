"""Chaos on a real Airflow: releases against the sandbox while something dies. ``python -m tests.chaos --help``."""
