"""Looking inside trained models: landscapes of the loss, its curvature, attributions."""
