"""x-vector and ResNet34 in PyTorch (`torch==2.13.0`), the peer of benchmarks/speaker_speed.py.

The networks, front end, loss and optimizer of `speaker.model` with kind "xvector" or "resnet" and
AAM-softmax, in PyTorch's own idiom: `[b, d, l]`, `nn.Conv1d`, `nn.BatchNorm1d`, channels-last
pictures for `nn.Conv2d`, `torch.stft`, fused Adam. It has no masks: rows of a batch are taken for
equally long, which saves it work; padded utterances then get other embeddings than alone. Needs
only PyTorch, NumPy and workers.py; speaker_speed.py starts it with the folder of the problem.
"""

import json
import os
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import workers

HOP, WINDOW, FFT = 160, 400, 512


class LogMel(nn.Module):
    """`[b, t]` in [-1, 1] -> `[b, m, l]` log-mel, ceil(t / 160) frames, less each band's mean."""

    def __init__(self, bank: torch.Tensor):
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("window", torch.hann_window(WINDOW))

    def forward(self, audio):
        before = torch.cat([audio[:, :1], audio[:, :-1]], 1)
        # torch.stft has the window in the middle of the FFT: what starts at sample 0 starts here
        # (FFT - WINDOW) / 2 samples later, of which the power knows nothing.
        left = (FFT - WINDOW) // 2
        frames = -(-audio.shape[1] // HOP)
        right = (frames - 1) * HOP + FFT - left - audio.shape[1]
        spectrum = torch.stft(
            functional.pad(audio - 0.97 * before, (left, right)),
            FFT,
            HOP,
            WINDOW,
            self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        features = torch.matmul(self.bank.T, power).clamp(min=1e-6).log()
        return features - features.mean(2, keepdim=True)


def affine(layer, arrays, name: str) -> None:
    """Copies a layer's weights, whose axes come in the opposite order."""
    kernel = torch.from_numpy(arrays[f"{name}/kernel"])
    layer.weight.copy_(kernel.permute(*reversed(range(kernel.ndim))).reshape_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))


def statistics(norm, arrays, name: str) -> None:
    norm.running_mean.copy_(torch.from_numpy(arrays[f"{name}/mean"]))
    norm.running_var.copy_(torch.from_numpy(arrays[f"{name}/var"]))
    if norm.affine:
        norm.weight.copy_(torch.from_numpy(arrays[f"{name}/scale"]))
        norm.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))


class XVector(nn.Module):
    """Log-mel `[b, m, l]` -> embeddings `[b, 512]` (tdnn7)."""

    def __init__(self, inputs: int, table, embedding_size: int):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for channels, kernel, dilation in table:
            padding = dilation * (kernel - 1) // 2
            self.convs.append(
                nn.Conv1d(inputs, channels, kernel, dilation=dilation, padding=padding)
            )
            self.norms.append(nn.BatchNorm1d(channels, affine=False))
            inputs = channels
        self.tdnn6 = nn.Linear(2 * inputs, embedding_size)
        self.norm6 = nn.BatchNorm1d(embedding_size, affine=False)
        self.tdnn7 = nn.Linear(embedding_size, embedding_size)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = norm(functional.relu(conv(x)))
        variance, mean = torch.var_mean(x, 2, correction=0)
        pooled = torch.cat([mean, torch.sqrt(variance + 1e-7)], 1)
        return self.tdnn7(self.norm6(functional.relu(self.tdnn6(pooled))))

    def load(self, arrays) -> None:
        """Copies weights named as in `speaker.xvector`, statistics too."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms), 1):
            affine(conv, arrays, f"encoder/tdnn{i}/conv")
            statistics(norm, arrays, f"encoder/tdnn{i}/norm")
        affine(self.tdnn6, arrays, "encoder/tdnn6/affine")
        affine(self.tdnn7, arrays, "encoder/tdnn7/affine")
        statistics(self.norm6, arrays, "encoder/norm6")


class NormalizedConv(nn.Module):
    def __init__(self, inputs: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x))

    def load(self, arrays, name: str) -> None:
        affine(self.conv, arrays, f"{name}/conv")
        statistics(self.norm, arrays, f"{name}/norm")


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = NormalizedConv(inputs, channels, 3, stride)
        self.conv2 = NormalizedConv(channels, channels, 3, 1)
        same = inputs == channels and stride == 1
        self.shortcut = None if same else NormalizedConv(inputs, channels, 1, stride)

    def forward(self, x):
        y = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def load(self, arrays, name: str) -> None:
        for part, layer in self.named_children():
            layer.load(arrays, f"{name}/{part}")


class ResNet(nn.Module):
    """Log-mel `[b, m, l]` -> embeddings `[b, 256]`."""

    def __init__(self, bands: int, num_blocks, widths, embedding_size: int):
        super().__init__()
        self.stem = NormalizedConv(1, widths[0], 3, 1)
        self.blocks, inputs = nn.ModuleDict(), widths[0]
        for stage, (count, width) in enumerate(zip(num_blocks, widths), 1):
            for i in range(1, count + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                self.blocks[f"stage{stage}_block{i}"] = Block(inputs, width, stride)
                inputs = width
        bins = -(-bands // 2 ** (len(widths) - 1))
        self.embedding = nn.Linear(2 * inputs * bins, embedding_size)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = functional.relu(self.stem(x[:, None].to(memory_format=torch.channels_last)))
        for block in self.blocks.values():
            x = block(x)
        variance, mean = torch.var_mean(x, 3, correction=0)  # [b, channels, bins]
        pooled = torch.stack([mean, torch.sqrt(variance + 1e-7)], 1)
        return self.embedding(pooled.transpose(2, 3).flatten(1))

    def load(self, arrays) -> None:
        """Copies weights named as in `speaker.resnet`, statistics too."""
        self.stem.load(arrays, "encoder/stem")
        for name, block in self.blocks.items():
            block.load(arrays, f"encoder/{name}")
        affine(self.embedding, arrays, "encoder/embedding/affine")


class AamSoftmax(nn.Module):
    """Mean cross entropy of s cos(t_y + m) among s cos t_j (Deng et al. 2019)."""

    def __init__(self, classes: int, embedding_size: int, margin: float, scale: float):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(classes, embedding_size) * embedding_size**-0.5)
        self.margin, self.scale = torch.tensor(margin), scale

    def forward(self, embeddings, labels):
        cosines = functional.linear(
            functional.normalize(embeddings), functional.normalize(self.weights)
        )
        target = cosines.gather(1, labels[:, None])
        cos_m, sin_m = self.margin.cos(), self.margin.sin()
        added = target * cos_m - (1 - target.square()).clamp(min=1e-12).sqrt() * sin_m
        added = torch.where(target > -cos_m, added, target - (1 - cos_m))
        return functional.cross_entropy(
            self.scale * cosines.scatter(1, labels[:, None], added), labels
        )


class Peer:
    """The answers to the commands, by name; `compiled`: by torch.compile in its default mode."""

    def __init__(self, folder: pathlib.Path):
        problem = np.load(folder / "problem.npz")
        settings = json.loads((folder / "problem.json").read_text("utf-8"))
        self.audio, self.labels = (torch.from_numpy(problem[k]) for k in ("audio", "labels"))
        self.utterances = [torch.from_numpy(x) for x in np.split(problem["long"], problem["ends"])]
        self.front_end = LogMel(torch.from_numpy(problem["bank"]))
        size = settings["embedding_size"]
        network = {"xvector": XVector, "resnet": ResNet}[settings["network"]]
        self.model = network(problem["bank"].shape[1], *settings["shape"], size)
        self.head = AamSoftmax(settings["classes"], size, settings["margin"], settings["scale"])
        arrays = np.load(folder / "weights.npz")
        with torch.no_grad():
            self.model.load(arrays)
            self.head.weights.copy_(torch.from_numpy(arrays["head/weights"]))
        self.compiled_model = torch.compile(self.model, dynamic=True)  # recordings differ in length
        self.compiled_loss = torch.compile(self.loss, dynamic=False)
        self.learning_rate, self.steps = settings["learning_rate"], 0
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters, betas=settings["betas"], eps=settings["eps"], fused=True
        )
        self.square = torch.randn(workers.GEMM_SIZE, workers.GEMM_SIZE)

    def describe(self) -> dict:
        count = sum(p.numel() for p in self.parameters)
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    def gemm(self) -> None:
        torch.mm(self.square, self.square)

    def loss(self, features, labels):
        return self.head(self.model(features), labels)

    @torch.inference_mode()
    def embed(self, audio, compiled: bool = False) -> np.ndarray:
        self.model.eval()
        model = self.compiled_model if compiled else self.model
        return model(self.front_end(audio)).numpy()

    def check(self, compiled: bool) -> list:
        return self.embed(self.audio[:8], compiled).tolist()

    def train(self, compiled: bool) -> float:
        """One step; its loss."""
        self.model.train()
        for group in self.optimizer.param_groups:  # a warm-up of one step, as ours
            group["lr"] = self.learning_rate if self.steps else 0.0
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # nothing before the first weight needs a gradient
            features = self.front_end(self.audio)
        loss = (self.compiled_loss if compiled else self.loss)(features, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def extract(self, rows: int, by_length: bool, compiled: bool) -> None:
        """Embeddings of all recordings, `rows` at a time, padded to the longest of them."""
        utterances = sorted(self.utterances, key=len) if by_length else self.utterances
        for i in range(0, len(utterances), rows):
            batch = utterances[i : i + rows]
            self.embed(nn.utils.rnn.pad_sequence(batch, batch_first=True), compiled)


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers.serve(Peer(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
