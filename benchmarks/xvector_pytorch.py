"""The x-vector in PyTorch (`torch==2.13.0`), the peer of benchmarks/speaker_speed.py.

The network, front end, loss and optimizer of `speaker.model` with kind "xvector" and AAM-softmax,
in PyTorch's own idiom: `[b, d, l]`, `nn.Conv1d`, `nn.BatchNorm1d`, `torch.stft`, fused Adam. It has
no masks: rows of a batch are taken for equally long, which saves it work; padded utterances then
get other embeddings than alone. Needs neither JAX nor this project:

    python -m venv torchenv && torchenv/bin/pip install torch==2.13.0 numpy

It is started by speaker_speed.py with the folder of the problem and answers each command read from
stdin (a line of JSON) with a line of JSON.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

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


class XVector(nn.Module):
    """Waveforms `[b, t]` -> embeddings `[b, 512]` (tdnn7)."""

    def __init__(self, bank: torch.Tensor, table, embedding_size: int):
        super().__init__()
        self.front_end = LogMel(bank)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = bank.shape[1]
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

    def forward(self, audio):
        with torch.no_grad():  # nothing before the first weight needs a gradient
            x = self.front_end(audio)
        for conv, norm in zip(self.convs, self.norms):
            x = norm(functional.relu(conv(x)))
        variance, mean = torch.var_mean(x, 2, correction=0)
        pooled = torch.cat([mean, torch.sqrt(variance + 1e-7)], 1)
        return self.tdnn7(self.norm6(functional.relu(self.tdnn6(pooled))))


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
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        problem = np.load(folder / "problem.npz")
        settings = json.loads((folder / "problem.json").read_text("utf-8"))
        self.audio, self.labels = (torch.from_numpy(problem[k]) for k in ("audio", "labels"))
        self.utterances = [torch.from_numpy(x) for x in np.split(problem["long"], problem["ends"])]
        self.batch_rows = settings["extract_rows"]
        bank = torch.from_numpy(problem["bank"])
        self.model = XVector(bank, settings["table"], settings["embedding_size"])
        size = settings["embedding_size"]
        self.head = AamSoftmax(settings["classes"], size, settings["margin"], settings["scale"])
        self.load(np.load(folder / "weights.npz"))
        self.learning_rate, self.steps = settings["learning_rate"], 0
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters, betas=settings["betas"], eps=settings["eps"], fused=True
        )

    @torch.no_grad()
    def load(self, arrays) -> None:
        """Copies weights named as in `speaker.xvector`, statistics too."""

        def affine(layer, name: str) -> None:
            kernel = torch.from_numpy(arrays[f"{name}/kernel"])
            layer.weight.copy_(
                kernel.permute(*reversed(range(kernel.ndim))).reshape_as(layer.weight)
            )
            layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))

        def statistics(norm, name: str) -> None:
            norm.running_mean.copy_(torch.from_numpy(arrays[f"{name}/mean"]))
            norm.running_var.copy_(torch.from_numpy(arrays[f"{name}/var"]))

        for i, (conv, norm) in enumerate(zip(self.model.convs, self.model.norms), 1):
            affine(conv, f"encoder/tdnn{i}/conv")
            statistics(norm, f"encoder/tdnn{i}/norm")
        affine(self.model.tdnn6, "encoder/tdnn6/affine")
        affine(self.model.tdnn7, "encoder/tdnn7/affine")
        statistics(self.model.norm6, "encoder/norm6")
        self.head.weights.copy_(torch.from_numpy(arrays["head/weights"]))

    def describe(self) -> dict:
        count = sum(p.numel() for p in self.parameters)
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    @torch.inference_mode()
    def embed(self, audio) -> np.ndarray:
        return self.model.eval()(audio).numpy()

    def check(self) -> dict:
        return {"embeddings": self.embed(self.audio[:8]).tolist()}

    def train(self, steps: int) -> dict:
        self.model.train()
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            for group in self.optimizer.param_groups:  # a warm-up of one step, as ours
                group["lr"] = self.learning_rate if self.steps else 0.0
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.head(self.model(self.audio), self.labels)
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.steps += 1
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses}

    def extract_single(self) -> dict:
        start = time.perf_counter()
        for x in self.utterances:
            self.embed(x[None])
        return {"seconds": [time.perf_counter() - start]}

    def extract_padded(self) -> dict:
        start = time.perf_counter()
        for i in range(0, len(self.utterances), self.batch_rows):
            rows = self.utterances[i : i + self.batch_rows]
            self.embed(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        return {"seconds": [time.perf_counter() - start]}


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    peer = Peer(pathlib.Path(sys.argv[1]))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(peer, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
