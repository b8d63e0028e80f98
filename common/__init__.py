"""What every task shares: trainer, data pipeline, audio, layers, analysis. Imports no task."""
