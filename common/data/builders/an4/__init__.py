"""AN4, the CMU census corpus."""
