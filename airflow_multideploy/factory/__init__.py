"""From the catalog to DAGs."""
