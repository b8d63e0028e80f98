"""Speaker recognition."""
