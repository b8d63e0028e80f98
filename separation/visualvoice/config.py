"""Sizes and variants of VisualVoice."""

import dataclasses

import jax
import jax.numpy as jnp

from common.audio import stft
from common.nn import residual

VIDEO_FRAME = 4  # STFT frames of one video frame: 40 ms, and of one step of the bottleneck


@dataclasses.dataclass(frozen=True)
class VisualVoiceConfig:
    """The defaults are the published network: lips and a face in, the mask of that voice out.

    Attributes:
        lip, face: which cues there are. Without either (audio only) the network cannot know which
            voice is wanted: it gives both, in no order.
        context: the faces and lips of both people go in together, and both masks come out.
        enhancement: of one voice from noise, which goes into a mixture with a weight of 2.
        lip_front, lip_stages, lip_units, lip_features: channels of the 3-D convolution, channels
            and units of the stages of ShuffleNetV2, and channels after them.
        tcn_channels, tcn_dilations, dropout: the convolutions over video frames.
        face_widths, face_blocks: of the ResNet-18s, for the voice too; embedding_size of both.
        unet_first: channels of the two convolutions that halve time and frequency.
        unet_widths: of the blocks after them, each of which halves frequency; with n of them,
            num_fft is 8 * 2**n.
        mask_limit: the parts of a mask lie between +- this.
        attention_heads: of self-attention over the steps of the bottleneck; 0 has none.
        axis_name: mapped axis whose devices share the statistics of batch normalisation.
        dtype: of convolutions: "float32" or "bfloat16". Parameters, statistics, embeddings and
            masks are float32.
        remat: in training only what comes out of a block is kept; what lies between is computed
            again for the gradients.
    """

    sample_rate_hz: int = 16000
    num_fft: int = 512
    window_ms: float = 25.0
    hop_ms: float = 10.0
    lip: bool = True
    face: bool = True
    context: bool = False
    enhancement: bool = False
    lip_front: int = 24
    lip_stages: tuple[int, ...] = (116, 232, 464)
    lip_units: tuple[int, ...] = (4, 8, 4)
    lip_features: int = 1024
    tcn_channels: int = 512
    tcn_dilations: tuple[int, ...] = (1, 2, 4, 8)
    dropout: float = 0.2
    face_widths: tuple[int, ...] = (64, 128, 256, 512)
    face_blocks: tuple[int, ...] = (2, 2, 2, 2)
    embedding_size: int = 128
    unet_first: tuple[int, int] = (64, 128)
    unet_widths: tuple[int, ...] = (256, 512, 512, 512, 512, 512)
    mask_limit: float = 5.0
    attention_heads: int = 0
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        bins = 4 * 2 ** len(self.unet_widths)
        if self.num_fft != 2 * bins:
            raise ValueError(
                f"num_fft={self.num_fft}, but {len(self.unet_widths)} unet_widths halve {bins} "
                f"bins to 1: num_fft={2 * bins}, or as many widths as halve {self.num_fft // 2}"
            )
        _ = self.stft  # says which windows cannot be
        if self.window_ms < 2 * self.hop_ms:
            raise ValueError(
                f"window_ms={self.window_ms:g} and hop_ms={self.hop_ms:g}: every sample has to lie "
                "in two windows, or what is masked comes out in pieces"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: from 0 to below 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose float32 or bfloat16")
        for one, other in (("lip_stages", "lip_units"), ("face_widths", "face_blocks")):
            if len(getattr(self, one)) != len(getattr(self, other)):
                raise ValueError(f"{one} and {other} differ in length: one of each for a stage")
        if any(width % 2 for width in self.lip_stages):
            raise ValueError(f"lip_stages={self.lip_stages}: even, because units split them")
        if self.context and not (self.lip or self.face):
            raise ValueError("context=True needs lip=True or face=True")
        if self.context and self.enhancement:
            raise ValueError("context=True is of two voices, enhancement=True of one")
        heads = self.attention_heads
        if heads < 0 or (heads and self.fused_size % heads):
            raise ValueError(
                f"attention_heads={self.attention_heads} does not divide the {self.fused_size} "
                "channels of the bottleneck"
            )

    @property
    def stft(self) -> stft.StftConfig:
        rate = self.sample_rate_hz / 1000
        return stft.StftConfig(
            self.num_fft, round(rate * self.window_ms), round(rate * self.hop_ms)
        )

    @property
    def num_bins(self) -> int:
        """That the networks see: all but the top one."""
        return self.num_fft // 2

    @property
    def cue_size(self) -> int:
        """Channels of one person's cues."""
        return self.lip * self.tcn_channels + self.face * self.embedding_size

    @property
    def other_weight(self) -> float:
        """Of what a voice is mixed with; its own is 1."""
        return 2.0 if self.enhancement else 1.0

    @property
    def mixture_share(self) -> float:
        """The networks see the sum of the weighted parts over this: 2, in enhancement 3."""
        return 1.0 + self.other_weight

    @property
    def voices(self) -> int:
        """Wanted of a mixture in training."""
        return 1 if self.enhancement else 2

    @property
    def together(self) -> int:
        """Voices that one pass of the network separates: 2 with context, and without cues."""
        return self.voices if self.context or not self.cue_size else 1

    @property
    def fused_size(self) -> int:
        """Channels of the bottleneck: 1152, with context 1792."""
        return self.unet_widths[-1] + self.together * self.cue_size

    @property
    def blocks(self) -> residual.BlockConfig:
        """Of the ResNet-18s."""
        return residual.BlockConfig(
            zero_init_residual=False,
            norm_momentum=self.norm_momentum,
            norm_epsilon=self.norm_epsilon,
            axis_name=self.axis_name,
            dtype=self.compute_dtype,
        )

    @property
    def compute_dtype(self) -> jax.typing.DTypeLike:
        return jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
