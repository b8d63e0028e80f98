"""Sources of records and the grain pipeline."""
