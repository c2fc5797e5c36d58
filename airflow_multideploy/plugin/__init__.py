"""What Airflow's UI and scheduler load."""
