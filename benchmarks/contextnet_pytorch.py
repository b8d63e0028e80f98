"""ContextNet's encoder in PyTorch (`torch==2.13.0`), the peer of the speed comparisons.

The same table as `asr.contextnet`, in PyTorch's own idiom: `[b, d, l]`, `nn.Conv1d`,
`nn.BatchNorm1d`. Its batch normalisation does not leave padded frames out (one native kernel, an
advantage in speed), so both give the same numbers where no row is padded. Needs neither JAX nor
this project; run it in an environment of its own:

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0
    torchenv/bin/python benchmarks/contextnet_pytorch.py --alpha 0.5 --rows 8 --frames 1000

prints the seconds of training steps (forward, backward, Adam) as one JSON object.
"""

import argparse
import json
import resource
import time

import torch
from torch import nn
from torch.nn import functional


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


def contextnet_table(alpha: float) -> list[tuple[int, int, int, int, bool]]:
    """(convs, channels, kernel, stride, residual) of C0 to C22, arXiv 2005.03191, table 1."""
    blocks = []
    for i in range(23):
        width = 640 if i == 22 else 256 if i <= 10 else 512
        edge = i in (0, 22)
        stride = 2 if i in (3, 7, 14) else 1
        blocks.append((1 if edge else 5, int(width * alpha), 5, stride, not edge))
    return blocks


def build_encoder(alpha: float, features: int = 80) -> Encoder:
    """ContextNet S, M or L (alpha 0.5, 1, 2); `.channels` is the width of the output."""
    return Encoder(contextnet_table(alpha), features)


class Transducer(nn.Module):
    """Encoder, one LSTM of 640, joint of 640; `forward` is the mean loss of the batch.

    The loss is what PyTorch without an extension offers: logits of the whole lattice, log-softmax,
    and the forward variables diagonal by diagonal under autograd.
    """

    def __init__(self, alpha: float, vocab_size: int, features: int = 80, width: int = 640):
        super().__init__()
        self.encoder = build_encoder(alpha, features)
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.from_encoder = nn.Linear(self.encoder.channels, width)
        self.from_prediction = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, vocab_size)

    def forward(self, x, lengths, labels, label_lengths):
        encoded, lengths = self.encoder(x, lengths)
        predicted, _ = self.lstm(self.embedding(functional.pad(labels, (1, 0))))
        hidden = self.from_encoder(encoded)[:, :, None] + self.from_prediction(predicted)[:, None]
        log_probs = self.output(torch.tanh(hidden)).log_softmax(-1)
        blank = log_probs[..., 0]
        index = labels[:, None, :, None].expand(-1, log_probs.shape[1], -1, 1)
        label = log_probs[:, :, :-1].gather(3, index)[..., 0]
        return -lattice(blank, label, lengths, label_lengths).mean()


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument(
        "--labels", type=int, default=0, help="train the transducer, not its encoder"
    )
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.rows, args.frames, 80)
    lengths = torch.full((args.rows,), args.frames)
    if args.labels:
        model = Transducer(args.alpha, args.vocab)
        labels = torch.randint(1, args.vocab, (args.rows, args.labels))
        inputs = (x, lengths, labels, torch.full((args.rows,), args.labels))
    else:
        model, inputs = build_encoder(args.alpha), (x, lengths)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds, losses = [], []
    for _ in range(args.steps + 2):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        out = model(*inputs)
        loss = out if args.labels else out[0].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "framework": f"torch {torch.__version__}",
                "parameters": sum(p.numel() for p in model.parameters()),
                "seconds": seconds[2:],
                "losses": losses,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
