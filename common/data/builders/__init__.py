"""tensorflow-datasets builders that write ArrayRecord and need no TensorFlow."""
