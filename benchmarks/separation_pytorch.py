"""VoiceFilter and the streaming extractor in PyTorch (`torch==2.13.0`), the peers of
separation_peer.py.

The networks of `separation.voicefilter` and `separation.causal`, the cue encoder, and the loss of
compressed magnitudes and SI-SDR, in PyTorch's own idiom: `[b, c, l, f]`, `nn.Conv2d`,
`nn.BatchNorm2d`, a bidirectional `nn.LSTM`, `torch.stft`, fused Adam. Rows of a batch are taken for
equally long: it has no masks, which saves it work. Needs only PyTorch, NumPy, workers.py and
speaker_pytorch.py; separation_peer.py starts it with the folder of the problem.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import workers
from benchmarks.speaker_pytorch import affine, statistics


def layer_norm(layer, arrays, name: str) -> None:
    layer.weight.copy_(torch.from_numpy(arrays[f"{name}/scale"]))
    layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))


class Cue(nn.Module):
    """Enrolments `[b, t]` -> cues `[b, c]` with a mean square of 1."""

    def __init__(self, settings, bank: torch.Tensor):
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("window", torch.hann_window(400))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = bank.shape[1]
        for taps, dilation in settings["layers"]:
            padding = dilation * (taps - 1) // 2
            self.convs.append(
                nn.Conv1d(inputs, settings["channels"], taps, dilation=dilation, padding=padding)
            )
            self.norms.append(nn.LayerNorm(settings["channels"], eps=1e-6))
            inputs = settings["channels"]
        self.cue = nn.Linear(2 * inputs, settings["size"])

    def forward(self, audio):
        before = torch.cat([audio[:, :1], audio[:, :-1]], 1)
        # As in speaker_pytorch.LogMel: the window in the middle of the FFT starts at sample 0.
        frames = -(-audio.shape[1] // 160)
        padded = functional.pad(
            audio - 0.97 * before, (56, (frames - 1) * 160 + 512 - 56 - audio.shape[1])
        )
        spectrum = torch.stft(padded, 512, 160, 400, self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        x = torch.matmul(self.bank.T, power).clamp(min=1e-6).log()
        x = x - x.mean((1, 2), keepdim=True)
        for conv, norm in zip(self.convs, self.norms):
            x = norm(functional.relu(conv(x)).transpose(1, 2)).transpose(1, 2)
        variance, mean = torch.var_mean(x, 2, correction=0)
        cue = self.cue(torch.cat([mean, torch.sqrt(variance + 1e-5)], 1))
        return cue * torch.rsqrt(cue.square().mean(1, keepdim=True) + 1e-8)

    def load(self, arrays) -> None:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            affine(conv, arrays, f"cue_encoder/conv{i}")
            layer_norm(norm, arrays, f"cue_encoder/norm{i}")
        affine(self.cue, arrays, "cue_encoder/cue")


class VoiceFilter(nn.Module):
    """Mixture `[b, t]` and cue -> voice `[b, t]` (Wang et al. 2019, table 1)."""

    def __init__(self, settings, cue_size: int):
        super().__init__()
        self.settings = settings
        bins = settings["num_fft"] // 2 + 1
        self.register_buffer("window", torch.hann_window(settings["window"]))
        self.convs, self.norms, inputs = nn.ModuleList(), nn.ModuleList(), 1
        for i, (kernel, dilation) in enumerate(settings["layers"]):
            last = i == len(settings["layers"]) - 1
            channels = settings["last_channels"] if last else settings["channels"]
            padding = (dilation * (kernel[0] - 1) // 2, kernel[1] // 2)
            self.convs.append(
                nn.Conv2d(inputs, channels, kernel, padding=padding, dilation=(dilation, 1))
            )
            self.norms.append(nn.BatchNorm2d(channels, momentum=0.01, eps=settings["epsilon"]))
            inputs = channels
        size = settings["lstm_size"]
        self.lstm = nn.LSTM(inputs * bins + cue_size, size, batch_first=True, bidirectional=True)
        for name in ("bias_hh_l0", "bias_hh_l0_reverse"):
            getattr(self.lstm, name).requires_grad_(False)  # a second bias: stays 0
        self.fc1 = nn.Linear(2 * size, settings["hidden_size"])
        self.fc2 = nn.Linear(settings["hidden_size"], bins)
        self.gains = self.mask  # or what torch.compile makes of it

    def forward(self, mixture, cue):
        s, num_samples = self.settings, mixture.shape[1]
        sizes = s["num_fft"], s["hop"], s["window"], self.window
        mixture = functional.pad(mixture, (0, s["num_fft"]))
        spectrum = torch.stft(
            mixture, *sizes, center=True, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        gains = self.gains(((power + 1e-8) ** (s["power"] / 2)).transpose(1, 2), cue)
        masked = spectrum * gains.transpose(1, 2)
        return torch.istft(masked, *sizes, center=True, length=mixture.shape[1])[:, :num_samples]

    def mask(self, x, cue):
        """Compressed magnitudes `[b, l, f]` and cue -> gains `[b, l, f]`."""
        x = x[:, None]
        for conv, norm in zip(self.convs, self.norms):
            x = functional.relu(norm(conv(x)))
        x = x.permute(0, 2, 3, 1).flatten(2)  # the channel goes round first, as in [b, l, f, c]
        x = torch.cat([x, cue[:, None].expand(-1, x.shape[1], -1)], 2)
        x = functional.relu(self.fc1(functional.relu(self.lstm(x)[0])))
        return torch.sigmoid(self.fc2(x))

    def load(self, arrays) -> None:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms), 1):
            kernel = torch.from_numpy(arrays[f"extractor/conv{i}/kernel"])
            conv.weight.copy_(kernel.permute(3, 2, 0, 1))
            conv.bias.copy_(torch.from_numpy(arrays[f"extractor/conv{i}/bias"]))
            statistics(norm, arrays, f"extractor/norm{i}")
        for name, end in (("forward", ""), ("backward", "_reverse")):
            for ours, theirs in (("input_kernel", "weight_ih_l0"), ("bias", "bias_ih_l0")):
                value = torch.from_numpy(arrays[f"extractor/{name}/{ours}"])
                getattr(self.lstm, theirs + end).copy_(value.T if value.ndim > 1 else value)
            value = torch.from_numpy(arrays[f"extractor/{name}/recurrent_kernel"])
            getattr(self.lstm, "weight_hh_l0" + end).copy_(value.T)
            getattr(self.lstm, "bias_hh_l0" + end).zero_()
        affine(self.fc1, arrays, "extractor/fc1")
        affine(self.fc2, arrays, "extractor/fc2")


class Causal(nn.Module):
    """One hop of `separation.causal`: `[1, hop]` and state -> `[1, hop]` and state.

    As there, the scales and shifts of a cue are computed before the first hop.
    """

    def __init__(self, size: int, hop: int, features: int, num_layers: int, cycle: int, cue: int):
        super().__init__()
        self.size, self.hop, self.lead = size, hop, size - hop
        self.register_buffer("window", torch.hann_window(size).sqrt())
        # Windows that overlap forever weigh alike in every hop.
        self.register_buffer("weight", 1 / self.window.square().reshape(-1, hop).sum(0))
        bins, wide = size // 2 + 1, 2 * features
        self.input = nn.Linear(3 * bins, features)
        self.films = nn.ModuleList(nn.Linear(cue, wide) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(features, eps=1e-6) for _ in range(num_layers))
        self.inputs = nn.ModuleList(nn.Linear(wide, wide) for _ in range(num_layers))
        self.outputs = nn.ModuleList(nn.Linear(features, features) for _ in range(num_layers))
        self.norm, self.mask = nn.LayerNorm(features, eps=1e-6), nn.Linear(features, 2 * bins)
        self.depths = [2 ** (i % cycle) for i in range(num_layers)]

    def initial_state(self):
        features = self.input.out_features
        layers = [torch.zeros(1, depth, features) for depth in self.depths]
        return torch.zeros(1, self.lead), torch.zeros(1, self.lead), layers

    def scales(self, cue):
        return torch.stack([film(cue) for film in self.films])

    def forward(self, samples, tail, layers: list[torch.Tensor], chunk, films):
        samples = torch.cat([samples, chunk], 1)
        spectrum = torch.fft.rfft(samples * self.window)
        real, imag = spectrum.real, spectrum.imag
        power = real.square() + imag.square()
        scale = (power + 1e-8) ** -0.35
        x = self.input(torch.cat([real * scale, imag * scale, (power + 1e-8).sqrt() * scale], 1))
        new: list[torch.Tensor] = []
        for i, (norm, enter, leave) in enumerate(zip(self.norms, self.inputs, self.outputs)):
            factor, offset = films[i].chunk(2, 1)
            y = norm(x) * (1 + factor) + offset
            past = torch.cat([layers[i], y[:, None]], 1)
            gate, y = enter(torch.cat([past[:, 0], y], 1)).chunk(2, 1)
            x = x + leave(torch.sigmoid(gate) * y)
            new.append(past[:, 1:])
        re, im = (2 * torch.tanh(self.mask(self.norm(x)) / 2)).chunk(2, 1)
        masked = torch.complex(real * re - imag * im, real * im + imag * re)
        audio = torch.fft.irfft(masked, self.size) * self.window
        audio = audio + functional.pad(tail, (0, self.hop))
        return samples[:, self.hop :], audio[:, self.hop :], new, audio[:, : self.hop] * self.weight

    def load(self, arrays) -> None:
        affine(self.input, arrays, "input")
        for i in range(len(self.depths)):
            affine(self.films[i], arrays, f"film{i}")
            layer_norm(self.norms[i], arrays, f"norm{i}")
            affine(self.inputs[i], arrays, f"input{i}")
            affine(self.outputs[i], arrays, f"output{i}")
        layer_norm(self.norm, arrays, "norm")
        affine(self.mask, arrays, "mask")


def si_sdr(estimate, target):
    """In dB, of each row."""
    estimate = estimate - estimate.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    energy = target.square().sum(1, keepdim=True)
    projected = target * (estimate * target).sum(1, keepdim=True) / (energy + 1e-10)
    noise = (estimate - projected).square().sum(1)
    return 10 * torch.log10((projected.square().sum(1) + 1e-10) / (noise + 1e-10))


class Peer:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.settings = json.loads((folder / "problem.json").read_text("utf-8"))
        arrays = np.load(folder / "weights.npz")
        shape = self.settings["voicefilter"]
        self.encoder = Cue(self.settings["cue"], torch.from_numpy(arrays["bank"]))
        self.network = VoiceFilter(shape, self.settings["cue"]["size"])
        with torch.no_grad():
            self.encoder.load(arrays)
            self.network.load(arrays)
        both = [*self.encoder.parameters(), *self.network.parameters()]
        self.parameters = [p for p in both if p.requires_grad]
        rate = self.settings["learning_rate"]
        self.optimizer = torch.optim.Adam(self.parameters, rate, (0.9, 0.98), 1e-9, fused=True)
        self.steps = 0
        self.loss_window = torch.hann_window(400)
        # The transforms stay eager: complex numbers are not compiled.
        mask = self.network.mask
        self.masks = {False: mask, True: torch.compile(mask, dynamic=False)}
        self.square = torch.randn(workers.GEMM_SIZE, workers.GEMM_SIZE)

    def describe(self) -> dict:
        count = sum(p.numel() for p in self.parameters)
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    def peak_mib(self) -> float:
        return workers.peak_mib()

    def gemm(self) -> None:
        torch.mm(self.square, self.square)

    def batch(self, number: int | str):
        found = np.load(self.folder / f"batch{number}.npz")
        return [torch.from_numpy(found[name]) for name in ("mixture", "enrolment", "target")]

    def spectrum(self, audio):
        return torch.stft(
            *(audio, 512, 160, 400, self.loss_window), pad_mode="constant", return_complex=True
        )

    def loss(self, mixture, enrolment, target):
        """Squared difference of magnitudes to the power 0.3, less 0.1 of the SI-SDR."""
        estimate = self.network(mixture, self.encoder(enrolment))
        both = [self.spectrum(x) for x in (estimate, target)]
        one, other = ((x.real.square() + x.imag.square() + 1e-8) ** 0.15 for x in both)
        return (one - other).square().mean() - 0.1 * si_sdr(estimate, target).mean()

    def train(self, number: int, compiled: bool) -> float:
        """One step on a batch; its loss."""
        self.encoder.train()
        self.network.train()
        for group in self.optimizer.param_groups:  # a warm-up of one step, as ours
            group["lr"] = self.settings["learning_rate"] if self.steps else 0.0
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.network.gains = self.masks[compiled]
        loss = self.loss(*self.batch(number))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings["clip_norm"])
        self.optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def extract(self, number: int) -> str:
        """Writes the voices of a batch; the file."""
        self.encoder.eval()
        self.network.eval()
        self.network.gains = self.network.mask
        mixture, enrolment, _ = self.batch(number)
        path = self.folder / "torch.npy"
        np.save(path, self.network(mixture, self.encoder(enrolment)).numpy())
        return str(path)

    def start_stream(self, how: str) -> None:
        """`how`: eager, script (TorchScript, frozen) or compiled (torch.compile)."""
        torch.set_num_threads(1)
        arrays = np.load(self.folder / "causal.npz")
        network = Causal(**self.settings["causal"]).eval()
        with torch.no_grad():
            network.load(arrays)
            self.films = network.scales(torch.from_numpy(arrays["cue"]))
        state = network.initial_state()
        self.chunks = torch.from_numpy(arrays["chunks"])
        if how == "script":
            with torch.no_grad():
                example = (*state, self.chunks[0], self.films)
                network = torch.jit.freeze(torch.jit.trace(network, example, strict=False))
        elif how == "compiled":
            network = torch.compile(network, dynamic=False)
        self.step, self.state = network, state

    @torch.inference_mode()
    def stream(self, hops: int) -> dict:
        """Milliseconds of a hop, and what came out of the first ones."""
        state, taken, heard = self.state, [], []
        for k in range(hops):
            started = time.perf_counter()
            *state, out = self.step(*state, self.chunks[k % len(self.chunks)], self.films)
            out = out.numpy()
            taken.append(1000 * (time.perf_counter() - started))
            if k < 20:
                heard.append(out[0].tolist())
        return {"ms": taken, "heard": heard}


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers.serve(Peer(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
