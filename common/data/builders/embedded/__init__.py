"""The embedded corpus as a tfds dataset."""
