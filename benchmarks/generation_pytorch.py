"""Wen, Raj and Singh's GAN in PyTorch (`torch==2.13.0`), the peer of generation_speed.py.

The networks, losses and optimizers of `generation.voice2face` in PyTorch's own idiom:
`nn.ConvTranspose2d`, channels-last pictures, fused Adam, no gradient of weights that stay. Needs
only PyTorch, NumPy and workers.py; generation_speed.py starts it with the folder of the problem.
"""

import itertools
import os
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import workers

NOISE, SLOPE, RATE, BETAS = 0.05, 0.2, 2e-4, (0.5, 0.999)


class Generator(nn.Module):
    """Vectors `[b, d]` of length 1 after noise -> pictures `[b, c, h, w]`."""

    def __init__(self, inputs: int, widths=(1024, 512, 256, 128, 64), channels: int = 3):
        super().__init__()
        self.ups = nn.ModuleList()
        for i, width in enumerate(widths):
            stride, padding = (1, 0) if i == 0 else (2, 1)
            self.ups.append(nn.ConvTranspose2d(inputs, width, 4, stride, padding))
            inputs = width
        self.picture = nn.Conv2d(inputs, channels, 1)

    def forward(self, condition, noise):
        x = functional.normalize(condition + NOISE * noise, dim=1)[:, :, None, None]
        for up in self.ups:
            x = functional.relu(up(x))
        return self.picture(x)


class Discriminator(nn.Module):
    """Pictures -> logits of being real `[b]`, and of who it is `[b, n]`."""

    def __init__(self, people: int, widths=(32, 64, 128, 256, 512), features: int = 64):
        super().__init__()
        self.picture = nn.Conv2d(3, widths[0], 1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[-1], features, 4)
        self.real = nn.Linear(features, 1, bias=False)
        self.people = nn.Linear(features, people, bias=False)

    def forward(self, pictures):
        x = self.picture(pictures)
        for down in self.downs:
            x = down(functional.leaky_relu(x, SLOPE))
        x = self.last(functional.leaky_relu(x, SLOPE)).flatten(1)
        return self.real(x)[:, 0], self.people(x)


def load(layer, arrays, name: str) -> None:
    """Copies a layer's weights from [h, w, in, out] or [in, out]."""
    kernel = torch.from_numpy(arrays[f"{name}/kernel"])
    if isinstance(layer, nn.ConvTranspose2d):  # whose taps run the other way
        kernel = kernel.flip(0, 1).permute(2, 3, 0, 1)
    elif kernel.ndim == 4:
        kernel = kernel.permute(3, 2, 0, 1)
    else:
        kernel = kernel.T
    layer.weight.copy_(kernel)
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))


class Peer:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        problem, arrays = np.load(folder / "problem.npz"), np.load(folder / "weights.npz")
        self.labels = torch.from_numpy(problem["labels"]).long()
        self.noise = torch.from_numpy(problem["noise"])
        people = self.noise.shape[1]
        self.condition = functional.one_hot(self.labels, people).float()
        faces = torch.from_numpy(problem["faces"]).permute(0, 3, 1, 2)
        self.faces = (faces.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        self.generator, self.discriminator = Generator(people), Discriminator(people)
        with torch.no_grad():
            for i, up in enumerate(self.generator.ups):
                load(up, arrays, f"generator/up_{i}")
            load(self.generator.picture, arrays, "generator/picture")
            load(self.discriminator.picture, arrays, "discriminator/face/picture")
            for i, down in enumerate(self.discriminator.downs):
                load(down, arrays, f"discriminator/face/down_{i}")
            load(self.discriminator.last, arrays, "discriminator/face/last")
            load(self.discriminator.real, arrays, "discriminator/real")
            load(self.discriminator.people, arrays, "discriminator/people")
        self.optimizers = []
        for network in (self.generator, self.discriminator):
            network.to(memory_format=torch.channels_last)
            optimizer = torch.optim.Adam(network.parameters(), betas=BETAS, eps=1e-8, fused=True)
            self.optimizers.append(optimizer)
        self.compiled = [torch.compile(f) for f in (self.discriminator_loss, self.generator_loss)]
        self.steps = 0
        self.square = torch.randn(workers.GEMM_SIZE, workers.GEMM_SIZE)

    def describe(self) -> dict:
        networks = (self.generator, self.discriminator)
        count = sum(p.numel() for network in networks for p in network.parameters())
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    def gemm(self) -> None:
        torch.mm(self.square, self.square)

    @torch.inference_mode()
    def check(self) -> tuple[list, list]:
        """Of 4 rows: made pictures, and the logits of real ones."""
        made = self.generator(self.condition[:4], self.noise[:4])
        return made.permute(0, 2, 3, 1).tolist(), self.discriminator(self.faces[:4])[0].tolist()

    def discriminator_loss(self, noise):
        with torch.no_grad():
            fake = self.generator(self.condition, noise)
        real, people = self.discriminator(self.faces)
        of_fake, _ = self.discriminator(fake)
        found = functional.softplus(-real).mean() + functional.softplus(of_fake).mean()
        return found + functional.cross_entropy(people, self.labels)

    def generator_loss(self, noise):
        real, people = self.discriminator(self.generator(self.condition, noise))
        return functional.softplus(-real).mean() + functional.cross_entropy(people, self.labels)

    def train(self, compiled: bool) -> list[float]:
        """One step; the losses of the two sides."""
        discriminator_loss, generator_loss = (
            self.compiled if compiled else (self.discriminator_loss, self.generator_loss)
        )
        rate = RATE if self.steps else 0.0  # a warm-up of one step, as ours
        self.steps += 1
        noise = torch.randn_like(self.condition)
        found = []
        of_generator, of_discriminator = self.optimizers
        for optimizer, loss, learns in (
            (of_discriminator, discriminator_loss, True),
            (of_generator, generator_loss, False),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate
            self.discriminator.requires_grad_(learns)
            optimizer.zero_grad(set_to_none=True)
            value = loss(noise)
            value.backward()
            optimizer.step()
            found.append(value.item())
        return found


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers.serve(Peer(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
