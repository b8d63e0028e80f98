"""Layers that more than one task uses."""
