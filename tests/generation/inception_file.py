"""Inception v3 with random weights, as PyTorch's files name them: one storage for all layers."""

import numpy as np

from generation import inception
from tests import torch_files

COUNT = 1_600_000  # numbers, of which each array shows its own part


def arrays(classes=1008):
    """By name; activations neither vanish nor grow from layer to layer."""
    drawn = np.random.default_rng(0).normal(size=COUNT).astype(np.float32)
    found = {}
    for number, (name, (*taps, c, d)) in enumerate(inception.kernel_shapes().items()):
        count = d * c * taps[0] * taps[1]
        kernel = drawn[number : number + count].reshape(d, c, *taps)
        own = drawn[1000 * number : 1000 * number + 4 * d].reshape(4, d)
        found[f"{name}.conv.weight"] = kernel * np.float32(np.sqrt(2 / (c * taps[0] * taps[1])))
        found[f"{name}.bn.weight"] = 1 + 0.1 * own[0]
        found[f"{name}.bn.bias"] = 0.1 * own[1]
        found[f"{name}.bn.running_mean"] = 0.1 * own[2]
        found[f"{name}.bn.running_var"] = np.exp(0.1 * own[3])
        found[f"{name}.bn.num_batches_tracked"] = np.int64(0)
    found["AuxLogits.fc.weight"] = np.zeros((classes, 768), np.float32)
    found["fc.weight"] = np.zeros((classes, inception.SIZE), np.float32)
    found["fc.bias"] = np.zeros(classes, np.float32)
    return found


def write(path, classes=1008):
    """A file of 6.4 MB: kernels are parts of the same numbers, 0.05 of deviation, and all variances
    are 1."""
    storage = 0.05 * np.random.default_rng(0).normal(size=COUNT)
    storage[0], storage[1] = 1, 0
    views = {"fc.weight": torch_files.view((classes, inception.SIZE), (0, 0), 1)}
    for name, (*taps, c, d) in inception.kernel_shapes().items():
        views[f"{name}.conv.weight"] = torch_files.view((d, c, *taps), None, 2)
        for part, place in (("weight", 0), ("bias", 1), ("running_mean", 1), ("running_var", 0)):
            views[f"{name}.bn.{part}"] = torch_files.view((d,), (0,), place)
    return torch_files.save(path, views, storage)
