"""Reading audio, front ends in JAX, augmentation."""
