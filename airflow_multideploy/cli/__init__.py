"""The command line: `airflow multideploy …`."""
