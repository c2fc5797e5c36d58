"""Whole releases on a small simulated Airflow, a fake platform and a fake clock, with every kind of trouble."""
