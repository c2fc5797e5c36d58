"""Adapters of platforms, by where they are; `kinds` finds those that are installed."""
