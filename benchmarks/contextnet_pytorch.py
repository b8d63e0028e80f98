"""ContextNet with a transducer in PyTorch (`torch==2.13.0`), the peer of training_speed.py.

The same table as `asr.contextnet`, in PyTorch's own idiom: `[b, d, l]`, `nn.Conv1d`,
`nn.BatchNorm1d`. Its batch normalisation does not leave padded frames out (one native kernel, an
advantage in speed), so both give the same numbers where no row is padded. Needs only PyTorch,
NumPy, workers.py and speaker_pytorch.py; training_speed.py starts it with the folder of the
problem.
"""

import os
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import workers
from benchmarks.speaker_pytorch import affine, statistics


class ConvUnit(nn.Module):
    """swish(BN(pointwise(depthwise(x)))); `[b, d, l]`, lengths -> the same after the stride."""

    def __init__(self, inputs: int, channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv1d(
            inputs, inputs, kernel_size, stride, kernel_size // 2, groups=inputs, bias=False
        )
        self.pointwise = nn.Conv1d(inputs, channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(channels, momentum=0.01)

    def forward(self, x, lengths):
        mask = torch.arange(x.shape[2])[None, None, :] < lengths[:, None, None]
        x = self.pointwise(self.depthwise(x * mask))
        return functional.silu(self.norm(x)), -(-lengths // self.stride)

    def load(self, arrays, name: str) -> None:
        affine(self.depthwise, arrays, f"{name}/depthwise")
        affine(self.pointwise, arrays, f"{name}/pointwise")
        statistics(self.norm, arrays, f"{name}/norm")


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from the mean over true frames."""

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x, lengths):
        mask = torch.arange(x.shape[2])[None, None, :] < lengths[:, None, None]
        mean = (x * mask).sum(2) / lengths.clamp(min=1)[:, None]
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(mean))))
        return x * gate[:, :, None]


class Block(nn.Module):
    """swish(SE(f^m(x)) + P(x)), stride on the last convolution."""

    def __init__(self, inputs, channels, num_convs, kernel_size, stride, residual):
        super().__init__()
        self.stride = stride
        self.convs = nn.ModuleList(
            ConvUnit(
                inputs if j == 0 else channels,
                channels,
                kernel_size,
                stride if j == num_convs - 1 else 1,
            )
            for j in range(num_convs)
        )
        self.se = SqueezeExcite(channels)
        self.projection = self.norm = None
        if residual:
            self.projection = nn.Conv1d(inputs, channels, 1, stride, bias=False)
            self.norm = nn.BatchNorm1d(channels, momentum=0.01)

    def forward(self, x, lengths):
        y, new_lengths = x, lengths
        for unit in self.convs:
            y, new_lengths = unit(y, new_lengths)
        y = self.se(y, new_lengths)
        if self.projection is not None:
            y = y + self.norm(self.projection(x))
        return functional.silu(y), new_lengths

    def load(self, arrays, name: str) -> None:
        for j, unit in enumerate(self.convs):
            unit.load(arrays, f"{name}/conv_{j}")
        affine(self.se.squeeze, arrays, f"{name}/se/squeeze")
        affine(self.se.excite, arrays, f"{name}/se/excite")
        if self.projection is not None:
            affine(self.projection, arrays, f"{name}/residual/projection")
            statistics(self.norm, arrays, f"{name}/residual/norm")


class Encoder(nn.Module):
    """`[b, l, f]`, lengths -> `[b, n, d]`, lengths."""

    def __init__(self, blocks, features: int = 80):
        super().__init__()
        layers = []
        for num_convs, channels, kernel_size, stride, residual in blocks:
            layers.append(Block(features, channels, num_convs, kernel_size, stride, residual))
            features = channels
        self.blocks = nn.ModuleList(layers)
        self.channels = features

    def forward(self, x, lengths):
        x = x.transpose(1, 2)
        for block in self.blocks:
            x, lengths = block(x, lengths)
        return x.transpose(1, 2), lengths

    def load(self, arrays) -> None:
        """Copies weights named as in `asr.contextnet`, statistics too."""
        for i, block in enumerate(self.blocks):
            block.load(arrays, f"encoder/block_{i}")


def contextnet_table(alpha: float) -> list[tuple[int, int, int, int, bool]]:
    """(convs, channels, kernel, stride, residual) of C0 to C22, arXiv 2005.03191, table 1."""
    blocks = []
    for i in range(23):
        width = 640 if i == 22 else 256 if i <= 10 else 512
        edge = i in (0, 22)
        stride = 2 if i in (3, 7, 14) else 1
        blocks.append((1 if edge else 5, int(width * alpha), 5, stride, not edge))
    return blocks


class Transducer(nn.Module):
    """Encoder, one LSTM of 640, joint of 640; `arcs` are the log-probabilities of the lattice.

    The loss is what PyTorch without an extension offers: logits of the whole lattice, log-softmax,
    and the forward variables diagonal by diagonal under autograd.
    """

    def __init__(self, alpha: float, vocab_size: int, features: int = 80, width: int = 640):
        super().__init__()
        self.encoder = Encoder(contextnet_table(alpha), features)
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.lstm.bias_hh_l0.requires_grad_(False)  # a second bias: stays 0
        self.from_encoder = nn.Linear(self.encoder.channels, width)
        self.from_prediction = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, vocab_size)

    def arcs(self, x, lengths, labels):
        """Those of blank `[b, l, u + 1]` and of the next label `[b, l, u]`, and the lengths."""
        encoded, lengths = self.encoder(x, lengths)
        predicted, _ = self.lstm(self.embedding(functional.pad(labels, (1, 0))))
        hidden = self.from_encoder(encoded)[:, :, None] + self.from_prediction(predicted)[:, None]
        log_probs = self.output(torch.tanh(hidden)).log_softmax(-1)
        blank = log_probs[..., 0]
        index = labels[:, None, :, None].expand(-1, log_probs.shape[1], -1, 1)
        label = log_probs[:, :, :-1].gather(3, index)[..., 0]
        return blank, label, lengths

    def load(self, arrays) -> None:
        """Copies weights named as in `asr.prediction`."""
        name = "prediction/params"
        self.embedding.weight.copy_(torch.from_numpy(arrays[f"{name}/embedding/embedding"]))
        self.lstm.weight_ih_l0.copy_(torch.from_numpy(arrays[f"{name}/lstm_0/input_kernel"].T))
        self.lstm.weight_hh_l0.copy_(torch.from_numpy(arrays[f"{name}/lstm_0/recurrent_kernel"].T))
        self.lstm.bias_ih_l0.copy_(torch.from_numpy(arrays[f"{name}/lstm_0/bias"]))
        self.lstm.bias_hh_l0.zero_()
        affine(self.from_encoder, arrays, "joint/params/encoder_projection")
        affine(self.from_prediction, arrays, "joint/params/prediction_projection")
        affine(self.output, arrays, "joint/params")


def lattice(blank, label, lengths, label_lengths):
    """Log-probability of the labels from the arcs `[b, l, u + 1]` and `[b, l, u]`."""
    rows, frames, nodes = blank.shape
    impossible = -1e30
    alphas = [functional.pad(blank.new_zeros(rows, 1), (0, nodes - 1), value=impossible)]
    column = torch.arange(nodes)
    for diagonal in range(1, frames + nodes - 1):
        # Node u of a diagonal is frame diagonal - u.
        frame = diagonal - column
        inside = (frame >= 0) & (frame < frames)
        stay = alphas[-1] + torch.where(
            (frame >= 1) & (frame <= frames), blank[:, (frame - 1).clamp(0, frames - 1), column], 0
        )
        stay = torch.where((frame >= 1)[None], stay, impossible)
        arc = label[:, frame.clamp(0, frames - 1)[1:], column[:-1]]
        move = functional.pad(alphas[-1][:, :-1] + arc, (1, 0), value=impossible)
        alphas.append(torch.where(inside[None], torch.logaddexp(stay, move), impossible))
    alphas = torch.stack(alphas, 1)
    every, last = torch.arange(rows), lengths - 1
    final = alphas[every, last + label_lengths, label_lengths]
    return final + blank[every, last, label_lengths]


class Peer:
    """The answers to the commands, by name; `compiled`: by torch.compile in its default mode."""

    def __init__(self, folder: pathlib.Path):
        problem, arrays = np.load(folder / "problem.npz"), np.load(folder / "weights.npz")
        names = ("features", "lengths", "labels", "label_lengths")
        self.inputs = [torch.from_numpy(problem[name]).contiguous() for name in names]
        self.with_labels = "joint/params/kernel" in arrays
        self.model = Transducer(float(problem["alpha"]), int(problem["vocab_size"]))
        trained = self.model if self.with_labels else self.model.encoder
        with torch.no_grad():
            self.model.encoder.load(arrays)
            if self.with_labels:
                self.model.load(arrays)
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=True)
        # The loop over diagonals stays eager: unrolled it takes minutes to compile.
        network = self.model.arcs if self.with_labels else self.model.encoder
        self.networks = {False: network, True: torch.compile(network)}
        self.square = torch.randn(workers.GEMM_SIZE, workers.GEMM_SIZE)

    def describe(self) -> dict:
        count = sum(p.numel() for p in self.parameters)
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    def peak_mib(self) -> float:
        return workers.peak_mib()

    def gemm(self) -> None:
        torch.mm(self.square, self.square)

    def train(self, compiled: bool) -> float:
        """One step; its loss."""
        features, lengths, labels, label_lengths = self.inputs
        self.optimizer.zero_grad(set_to_none=True)
        if self.with_labels:
            blank, label, lengths = self.networks[compiled](features, lengths, labels)
            loss = -lattice(blank, label, lengths, label_lengths).mean()
        else:
            loss = self.networks[compiled](features, lengths)[0].square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers.serve(Peer(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
