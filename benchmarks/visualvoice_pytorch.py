"""VisualVoice in PyTorch (`torch==2.13.0`), the peer of visualvoice_speed.py.

The networks, losses and optimizer of `separation.visualvoice` in PyTorch's own idiom: `[b, c, l,
f]`, `nn.Conv3d`, `nn.BatchNorm2d`, `nn.ConvTranspose2d`, channels-last pictures, `torch.stft`,
fused AdamW. As in ours, the way down of the U-Net is run once for all voices of a mixture. It has
no masks: rows are taken for equally long and all pictures as present, which saves it work. Needs
only PyTorch, NumPy, workers.py, speaker_pytorch.py and generation_pytorch.py; visualvoice_speed.py
starts it with the folder of the problem.
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
from benchmarks.generation_pytorch import load
from benchmarks.speaker_pytorch import affine, statistics

VIDEO_FRAME = 4  # STFT frames of a picture of the mouth
LEVEL = 0.1  # RMS of each voice
SLOPE = 0.2  # below 0, on the way down
FLOOR = 1e-8  # of the power that a mask's target divides by
NORM = {"momentum": 0.1, "eps": 1e-5}


class Layer(nn.Module):
    """BN(conv(x)) of square taps."""

    def __init__(self, inputs: int, features: int, taps=3, stride=1, bias=False, groups=1):
        super().__init__()
        around = (taps - 1) // 2
        self.conv = nn.Conv2d(inputs, features, taps, stride, around, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(features, **NORM)

    def forward(self, x):
        return self.norm(self.conv(x))

    def load(self, arrays, name: str) -> None:
        own = f"{name}/conv" if f"{name}/conv/kernel" in arrays else name  # of depthwise ones
        load(self.conv, arrays, own)
        statistics(self.norm, arrays, f"{name}/norm")


def load_parts(module: nn.Module, arrays, name: str) -> None:
    """Loads the parts that have the names of ours."""
    for part, layer in module.named_children():
        place = f"{name}/{part}"
        if isinstance(layer, nn.PReLU):
            layer.weight.copy_(torch.from_numpy(arrays[f"{place}/slope"]))
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm3d):
            statistics(layer, arrays, place)
        elif isinstance(layer, nn.Conv1d | nn.Linear):
            affine(layer, arrays, place)
        else:
            layer.load(arrays, place)


class Unit(nn.Module):
    """A unit of ShuffleNetV2."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.stride, half = stride, features // 2
        if stride == 2:
            self.left_taps = Layer(inputs, inputs, 3, 2, groups=inputs)
            self.left = Layer(inputs, half, 1)
        else:
            inputs = half
        self.enter = Layer(inputs, half, 1)
        self.taps = Layer(half, half, 3, stride, groups=half)
        self.leave = Layer(half, half, 1)

    def forward(self, x):
        if self.stride == 1:
            passed, x = x.chunk(2, 1)
        else:
            passed = functional.relu(self.left(self.left_taps(x)))
        x = functional.relu(self.leave(self.taps(functional.relu(self.enter(x)))))
        return torch.stack([passed, x], 2).flatten(1, 2)

    load = load_parts


class Temporal(nn.Module):
    """A block of the TCN, `[b, c, v]`, without its dropout."""

    def __init__(self, inputs: int, features: int, dilation: int):
        super().__init__()
        wide = {"padding": dilation, "dilation": dilation}
        self.conv1 = nn.Conv1d(inputs, features, 3, **wide)
        self.norm1 = nn.BatchNorm1d(features, **NORM)
        self.prelu1 = nn.PReLU(features)
        self.conv2 = nn.Conv1d(features, features, 3, **wide)
        self.norm2 = nn.BatchNorm1d(features, **NORM)
        self.prelu2 = nn.PReLU(features)
        self.shortcut = nn.Conv1d(inputs, features, 1) if inputs != features else None
        self.prelu = nn.PReLU(features)

    def forward(self, x):
        y = self.prelu1(self.norm1(self.conv1(x)))
        y = self.prelu2(self.norm2(self.conv2(y)))
        return self.prelu(y + (x if self.shortcut is None else self.shortcut(x)))

    load = load_parts


class Lips(nn.Module):
    """Mouths `[b, v, h, w]` -> `[b, d, v]`."""

    def __init__(self, sizes):
        super().__init__()
        front = sizes["lip_front"]
        self.conv = nn.Conv3d(1, front, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(front, **NORM)
        self.prelu = nn.PReLU(front)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.units, inputs = nn.ModuleDict(), front
        for stage, (features, units) in enumerate(zip(sizes["lip_stages"], sizes["lip_units"]), 1):
            for i in range(1, units + 1):
                unit = Unit(inputs, features, 1 if i > 1 else 2)
                self.units[f"stage{stage}_unit{i}"] = unit
                inputs = features
        self.last = Layer(inputs, sizes["lip_features"], 1)
        self.temporal, inputs = nn.ModuleList(), sizes["lip_features"]
        for dilation in sizes["tcn_dilations"]:
            self.temporal.append(Temporal(inputs, sizes["tcn_channels"], dilation))
            inputs = sizes["tcn_channels"]

    def forward(self, mouth):
        b, v = mouth.shape[:2]
        x = self.pool(self.prelu(self.norm(self.conv(mouth[:, None]))))
        x = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for unit in self.units.values():
            x = unit(x)
        x = functional.relu(self.last(x)).mean((2, 3)).reshape(b, v, -1).transpose(1, 2)
        for block in self.temporal:
            x = block(x)
        return x

    def load(self, arrays, name: str) -> None:
        # Ours is a convolution in the plane, whose channels are the five pictures: [h, w, v, d].
        kernel = torch.from_numpy(arrays[f"{name}/front/conv/kernel"])
        self.conv.weight.copy_(kernel.permute(3, 2, 0, 1)[:, None])
        statistics(self.norm, arrays, f"{name}/front/norm")
        self.prelu.weight.copy_(torch.from_numpy(arrays[f"{name}/front_prelu/slope"]))
        for part, unit in self.units.items():
            unit.load(arrays, f"{name}/shuffle/{part}")
        self.last.load(arrays, f"{name}/shuffle/last")
        for i, block in enumerate(self.temporal, 1):
            block.load(arrays, f"{name}/tcn{i}")


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = Layer(inputs, features, 3, stride)
        self.conv2 = Layer(features, features)
        same = inputs == features and stride == 1
        self.shortcut = None if same else Layer(inputs, features, 1, stride)

    def forward(self, x):
        y = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    load = load_parts


class ResNet18(nn.Module):
    """Pictures `[b, c, h, w]` -> embeddings `[b, e]`."""

    def __init__(self, inputs: int, sizes):
        super().__init__()
        widths, blocks = sizes["face_widths"], sizes["face_blocks"]
        self.stem = Layer(inputs, widths[0], 7, 2)
        self.blocks, inputs = nn.ModuleDict(), widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks), 1):
            for i in range(1, count + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                self.blocks[f"stage{stage}_block{i}"] = Block(inputs, width, stride)
                inputs = width
        self.embedding = nn.Linear(inputs, sizes["embedding_size"])

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        for block in self.blocks.values():
            x = block(x)
        return self.embedding(x.amax((2, 3)))

    def load(self, arrays, name: str) -> None:
        self.stem.load(arrays, f"{name}/stem")
        for part, block in self.blocks.items():
            block.load(arrays, f"{name}/{part}")
        affine(self.embedding, arrays, f"{name}/embedding")


def load_doubling(layer: nn.ConvTranspose2d, arrays, name: str) -> None:
    """Ours has the four outputs of an input as channels, each of 2 x 2 taps: [2, 2, c, 4 d]."""
    kernel = torch.from_numpy(arrays[f"{name}/conv/kernel"])
    c, d = layer.weight.shape[:2]
    # Tap m of output p, of four that overlap, is the one that is 2 m + p from the end.
    taps = kernel.reshape(2, 2, c, 2, 2, d).permute(2, 5, 0, 3, 1, 4).reshape(c, d, 4, 4)
    layer.weight.copy_(taps.flip(2, 3))
    layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))


def even(x):
    """With a frame of zeros behind if their number is odd."""
    return functional.pad(x, (0, 0, 0, x.shape[2] % 2))


class UNet(nn.Module):
    """Spectra `[b, 2, l, f]` and cues `[b, s, c, l / 4]` -> masks `[b, s, 2, l, f]`."""

    def __init__(self, sizes):
        super().__init__()
        self.limit = sizes["mask_limit"]
        self.halvings, self.downs, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs, widths = 2, []
        for features in sizes["unet_first"]:
            self.halvings.append(Layer(inputs, features, 4, 2, bias=True))
            widths.append(features)
            inputs = features
        for features in sizes["unet_widths"]:
            both = [Layer(inputs, features, bias=True), Layer(features, features, bias=True)]
            self.downs.append(nn.ModuleList(both))
            widths.append(features)
            inputs = features
        inputs = widths.pop() + sizes["tcn_channels"] + sizes["embedding_size"]
        while len(widths) > 1:
            features = widths.pop()
            self.ups.append(Layer(inputs, features, bias=True))
            inputs = 2 * features  # beside what was there on the way down
        self.doubling1 = nn.ConvTranspose2d(inputs, widths[0], 4, 2, 1)
        self.doubling1_norm = nn.BatchNorm2d(widths[0], **NORM)
        self.doubling2 = nn.ConvTranspose2d(2 * widths[0], 2, 4, 2, 1)

    def forward(self, spectrum, cues):
        b, s = cues.shape[:2]
        x, skips = spectrum.contiguous(memory_format=torch.channels_last), []
        for halving in self.halvings:
            x = functional.leaky_relu(halving(even(x)), SLOPE)
            skips.append(x)
        for both in self.downs:
            for layer in both:
                x = functional.leaky_relu(layer(x), SLOPE)
            x = functional.max_pool2d(x, (1, 2))
            skips.append(x)

        def repeated(x):
            return x.repeat_interleave(s, 0) if s > 1 else x

        x = torch.cat([cues.flatten(0, 1)[..., None], repeated(skips.pop())], 1)
        for up in self.ups:
            x = functional.relu(up(functional.interpolate(x, scale_factor=(1.0, 2.0))))
            x = torch.cat([x, repeated(skips.pop())], 1)
        skip = skips.pop()
        x = self.doubling1(x)[:, :, : skip.shape[2]]
        x = torch.cat([functional.relu(self.doubling1_norm(x)), repeated(skip)], 1)
        x = self.doubling2(x)[:, :, : spectrum.shape[2]]
        return self.limit * torch.tanh(x).unflatten(0, (b, s))

    def load(self, arrays, name: str) -> None:
        for i, halving in enumerate(self.halvings, 1):
            halving.load(arrays, f"{name}/halving{i}/conv")
        for i, both in enumerate(self.downs, 1):
            for j, layer in enumerate(both, 1):
                layer.load(arrays, f"{name}/down{i}/conv{j}")
        for i, up in enumerate(self.ups, 1):
            up.load(arrays, f"{name}/up{i}/conv")
        load_doubling(self.doubling1, arrays, f"{name}/doubling1")
        statistics(self.doubling1_norm, arrays, f"{name}/doubling1_norm")
        load_doubling(self.doubling2, arrays, f"{name}/doubling2")


def product(one, other):
    """Of complex numbers, whose parts are the channels of `[..., 2, l, f]`."""
    (a, b), (c, d) = one.unbind(-3), other.unbind(-3)
    return torch.stack([a * c - b * d, a * d + b * c], -3)


def triplet(anchor, positive, negative, margin: float):
    """Of cosine distances."""
    near = functional.cosine_similarity(anchor, positive, -1)
    far = functional.cosine_similarity(anchor, negative, -1)
    return functional.relu(far - near + margin)


class VisualVoice(nn.Module):
    """All four networks; spectra are `[..., 2, l, f]` of all bins but the top one."""

    def __init__(self, known):
        super().__init__()
        sizes, self.weights = known["sizes"], known["loss"]
        self.limit = sizes["mask_limit"]
        self.lip_net, self.face_net = Lips(sizes), ResNet18(3, sizes)
        self.unet, self.voice_net = UNet(sizes), ResNet18(2, sizes)
        for network in (*self.lip_net.units.values(), self.lip_net.last):
            network.to(memory_format=torch.channels_last)
        for network in (self.face_net, self.unet, self.voice_net):
            network.to(memory_format=torch.channels_last)

    def load(self, arrays) -> None:
        for part, network in self.named_children():
            network.load(arrays, f"{part}/resnet" if part == "face_net" else part)

    def forward(self, mixture, lip, face):
        """Masks `[b, s, 2, l, f]` of what is seen, lips `[b, s, d, v]` and faces `[b, s, e]`."""
        steps = -(-mixture.shape[2] // VIDEO_FRAME)
        lip = functional.pad(lip, (0, steps - lip.shape[3]))
        face = face[..., None].expand(-1, -1, -1, steps)
        return self.unet(mixture, torch.cat([face, lip], 2))

    def lips(self, mouth):
        """`[b, s, v, h, w]` -> `[b, s, d, v]`."""
        return self.lip_net(mouth.flatten(0, 1)).unflatten(0, mouth.shape[:2])

    def faces(self, faces):
        """`[b, s, 3, h, w]` -> `[b, s, e]`."""
        pictures = faces.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.face_net(pictures).unflatten(0, faces.shape[:2])

    def masks(self, mixture, mouth, faces):
        """From what is heard and seen."""
        return self(mixture, self.lips(mouth), self.faces(faces))

    def losses(self, spectra, mouth, faces, coins):
        """The loss, and its terms before their weights: `separation.visualvoice.losses`.

        `spectra` `[b, 3, 2, l, f]` and `mouth` are of the clips A1, A2 and B, `faces` of A and B;
        `coins` `[b, 2]`: of which rows embeddings are those of true voices.
        """
        weights = self.weights
        true = torch.stack([spectra[:, [0, 2]], spectra[:, [1, 2]]], 1)
        mixtures = true.sum(2) / 2
        lip = self.lips(mouth)
        lip = torch.stack([lip[:, [0, 2]], lip[:, [1, 2]]], 1).flatten(0, 1)
        face = self.faces(faces)
        masks = self(mixtures.flatten(0, 1), lip, face.repeat_interleave(2, 0))
        masks = masks.unflatten(0, mixtures.shape[:2])
        power = mixtures.square().sum(2, keepdim=True)  # [b, 2, 1, l, f]
        conjugate = torch.stack([mixtures[:, :, 0], -mixtures[:, :, 1]], 2)
        targets = product(true, conjugate[:, :, None]) / (power + FLOOR)[:, :, None]
        counted = power.clamp(min=1e-12).sqrt().log1p().clamp(1e-3, 10.0)
        distances = (masks - targets.clamp(-self.limit, self.limit)).square()
        mask_loss = (distances * counted[:, :, None]).mean()

        heard = product(masks, mixtures[:, :, None])
        shown = [torch.where(coin[:, None, None, None, None, None], true, heard) for coin in coins]
        rows = torch.stack(shown, 1)  # [b, loss, mixture, person, 2, l, f]
        pictures = rows.flatten(0, 3).contiguous(memory_format=torch.channels_last)
        voices = self.voice_net(pictures).unflatten(0, rows.shape[:4])
        margin, near = weights["margin"], voices[:, 0]
        matching = triplet(near, face[:, None], face.flip(1)[:, None], margin).mean()
        a1, a2, others = voices[:, 1, 0, 0], voices[:, 1, 1, 0], voices[:, 1, :, 1]
        consistency = triplet(a1[:, None], a2[:, None], others, margin).mean()
        # The published loss adds up four masks, four triplets, and two.
        loss = 4 * weights["mask"] * mask_loss + 4 * weights["matching"] * matching
        return loss + 2 * weights["consistency"] * consistency, mask_loss, matching, consistency


class Peer:
    """The answers to the commands, by name."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        known = json.loads((folder / "problem.json").read_text("utf-8"))
        problem, arrays = np.load(folder / "problem.npz"), np.load(folder / "weights.npz")
        self.known = known
        self.problem = {name: torch.from_numpy(problem[name]) for name in problem}
        for name in self.problem:
            if name.startswith("faces"):
                faces = self.problem[name][:, :, 0].permute(0, 1, 4, 2, 3)
                self.problem[name] = faces.contiguous()
        self.net = VisualVoice(known)
        with torch.no_grad():
            self.net.load({name: arrays[name] for name in arrays})
        self.window = torch.hann_window(known["window"])
        optimizer = known["optimizer"]
        groups = []
        for part, network in self.net.named_children():
            for decayed in (False, True):
                groups.append(
                    {
                        "params": [p for p in network.parameters() if (p.ndim > 1) == decayed],
                        "rate": optimizer["rate"] * optimizer["factors"].get(part, 1.0),
                        "weight_decay": optimizer["weight_decay"] if decayed else 0.0,
                    }
                )
        self.optimizer = torch.optim.AdamW(
            groups, betas=optimizer["betas"], eps=optimizer["eps"], fused=True
        )
        self.steps = 0
        # Not dynamic: each length has a program of its own, as ours has.
        self.losses = {False: self.net.losses, True: torch.compile(self.net.losses, dynamic=False)}
        # Without gradients weights are constants, and may be brought into another order: frozen.
        self.masks = {
            "eager": self.net.masks,
            "compiled": torch.compile(self.net.masks, dynamic=False),
            "frozen": torch.compile(self.net.masks, dynamic=False, options={"freezing": True}),
        }
        self.square = torch.randn(workers.GEMM_SIZE, workers.GEMM_SIZE)

    def describe(self) -> dict:
        count = {
            part: sum(p.numel() for p in network.parameters())
            for part, network in self.net.named_children()
        }
        return {"framework": f"torch {torch.__version__}", "parameters": count}

    def gemm(self) -> None:
        torch.mm(self.square, self.square)

    def spectrum(self, audio):
        """`[n, t]` -> `[n, l, f]`, complex, all bins."""
        sizes = self.known["num_fft"], self.known["hop"], self.known["window"], self.window
        found = torch.stft(audio, *sizes, center=True, pad_mode="constant", return_complex=True)
        return found.transpose(1, 2)

    def levelled(self, audio, level: float):
        power = audio.square().mean(-1, keepdim=True)
        return audio * (level / power.clamp(min=1e-10).sqrt())

    def parts(self, spectrum):
        """`[n, l, f]` -> `[n, 2, l, f - 1]`."""
        return torch.view_as_real(spectrum)[:, :, :-1].permute(0, 3, 1, 2)

    @torch.inference_mode()
    def separated(self, seconds: str, how: str):
        """Waveforms in, voices `[b, s, t]` out."""
        self.net.eval()
        names = ("mixture", "mouth", "faces")
        mixture, mouth, faces = (self.problem[f"{name}_{seconds}"] for name in names)
        level = LEVEL * 2**0.5 / 2  # of two voices' half
        seen = self.parts(self.spectrum(self.levelled(mixture, level)))
        masks = self.masks[how](seen, mouth, faces)
        masks = torch.cat([masks, masks[..., -1:]], 4)  # the top bin has the mask of the one below
        spectrum = self.spectrum(mixture)[:, None] / 2
        masked = spectrum * torch.complex(masks[:, :, 0], masks[:, :, 1])
        sizes = self.known["num_fft"], self.known["hop"], self.known["window"], self.window
        voices = torch.istft(
            masked.flatten(0, 1).transpose(1, 2), *sizes, center=True, length=mixture.shape[1]
        )
        return voices.unflatten(0, masked.shape[:2])

    def infer(self, seconds: str, how: str) -> None:
        self.separated(seconds, how)

    def check(self, seconds: str, how: str) -> str:
        """Writes the voices; the file."""
        path = self.folder / "torch.npy"
        np.save(path, self.separated(seconds, how).numpy())
        return str(path)

    def train(self, compiled: bool) -> dict[str, float]:
        """One step; its loss, the terms, and the length of the gradient."""
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] if self.steps else 0.0  # a warm-up of one step, as ours
        self.steps += 1
        audio, mouth, faces = (self.problem[name] for name in ("audio", "mouth", "faces"))
        spectra = self.parts(self.spectrum(self.levelled(audio, LEVEL).flatten(0, 1)))
        coins = torch.rand(2, len(audio)) < self.known["loss"]["true_share"]
        self.optimizer.zero_grad(set_to_none=True)
        spectra = spectra.unflatten(0, audio.shape[:2])
        loss, *terms = self.losses[compiled](spectra, mouth, faces, coins)
        loss.backward()
        gradients = [p.grad for p in self.net.parameters()]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        self.optimizer.step()
        names = ("loss", "mask_loss", "matching_loss", "consistency_loss", "grad_norm")
        return {name: x.item() for name, x in zip(names, (loss, *terms, norm), strict=True)}

    def gradients(self) -> dict[str, float]:
        """Of the last step: the length for each network."""
        return {
            part: nn.utils.get_total_norm([p.grad for p in network.parameters()]).item()
            for part, network in self.net.named_children()
        }


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workers.serve(Peer(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
