"""The U-Net from the spectrum of a mixture, and cues, to a complex mask for each voice.

Two convolutions halve time and frequency, blocks of two halve frequency alone, down to one bin: the
bottleneck, one step for every frame of video, where cues are put beside the channels. Then up
again, beside what was there on the way down. 46,135,682 parameters, with context 49,088,900.

The way down does not depend on cues, and is run once, however many voices are wanted.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.nn import conv2d, masking
from separation.visualvoice import attention, layers
from separation.visualvoice.config import VisualVoiceConfig

_LEAK = 0.2


class Halving(nn.Module):
    """LeakyReLU(BN(conv)) of 4 x 4 taps with a stride of 2."""

    config: VisualVoiceConfig
    features: int

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> Array:
        layer = layers.Normalized(self.config, self.features, (4, 4), 2, True, name="conv")
        return jax.nn.leaky_relu(layer(x, mask, train=train), _LEAK)


class Down(nn.Module):
    """Two convolutions of 3 x 3 taps, and the larger of two neighbouring bins."""

    config: VisualVoiceConfig
    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l f c"], mask: Float[Array, "b l 1"], *, train: bool
    ) -> Float[Array, "b l g d"]:
        for i in (1, 2):
            layer = layers.Normalized(self.config, self.features, use_bias=True, name=f"conv{i}")
            x = jax.nn.leaky_relu(layer(x, mask, train=train), _LEAK)
        return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


class Up(nn.Module):
    """Every bin twice, then a convolution of 3 x 3 taps."""

    config: VisualVoiceConfig
    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l f c"], mask: Float[Array, "b l 1"], *, train: bool
    ) -> Float[Array, "b l g d"]:
        layer = layers.Normalized(self.config, self.features, use_bias=True, name="conv")
        return jax.nn.relu(layer(jnp.repeat(x, 2, axis=2), mask, train=train))


class Doubling(nn.Module):
    """A transposed convolution of 4 x 4 taps with a stride of 2: `[b, 2 l, 2 f, d]`.

    Each output sees 2 x 2 inputs. So the four that belong to one input are channels of one
    convolution of 2 x 2 taps, which then are set side by side.
    """

    config: VisualVoiceConfig
    features: int
    variance: float = 2.0  # of the outputs before training, over the mean square of the inputs

    @nn.compact
    def __call__(self, x: Float[Array, "b l f c"]) -> Float[Array, "b m g d"]:
        b, num_frames, num_bins, _ = x.shape
        d = self.features
        x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
        conv = conv2d.Conv2D(
            4 * d,
            (2, 2),
            dtype=self.config.compute_dtype,
            kernel_init=nn.initializers.variance_scaling(self.variance, "fan_in", "normal"),
            name="conv",
        )
        y = conv(x).reshape(b, num_frames + 1, num_bins + 1, 2, 2, d)
        # Output 2 i sees inputs i - 1 and i, output 2 i + 1 sees i and i + 1.
        rows = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)  # [b, l, 2, f + 1, 2, d]
        both = jnp.stack([rows[:, :, :, :-1, 0], rows[:, :, :, 1:, 1]], axis=4)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        y = both.reshape(b, 2 * num_frames, 2 * num_bins, d)
        return y + bias.astype(y.dtype)[None, None, None, :]


class UNet(nn.Module):
    """Masks of a mixture's voices."""

    config: VisualVoiceConfig

    @nn.compact
    def __call__(
        self,
        spectrum: Float[Array, "b l f 2"],
        lengths: Int[Array, "b"],
        cues: Float[Array, "b s v c"],
        *,
        train: bool,
    ) -> Float[Array, "b s l f 2"]:
        """The complex masks of s voices, which lie between +- `mask_limit`.

        Args:
          spectrum: real and imaginary parts of all bins but the top one; 0 beyond `lengths`.
          lengths: true STFT frames; 0 in rows that are not real.
          cues: of each voice, one a frame of video, which is four of the STFT; those beyond the end
            are not seen, those that are missing there are 0. With context s is 2, and both are seen
            for both; without any cue (c = 0) it is 2, and nothing says in which order they come.
          train: batch statistics or running averages.

        Returns:
          float32, 0 beyond `lengths`.
        """
        config = self.config
        run = functools.partial(layers.applied, train=train, remat=config.remat)
        num_frames = spectrum.shape[1]
        s = cues.shape[1]
        if config.together > 1 and s != config.together:
            raise ValueError(f"cues of {s} voices, but this network gives {config.together}")
        x, skips, masks = spectrum.astype(config.compute_dtype), [], []
        frames = [lengths]
        for i, features in enumerate(config.unet_first):
            frames.append(masking.conv_lengths(frames[-1], 2))
            masks.append(masking.float_mask(frames[-1], -(-x.shape[1] // 2))[:, :, None])
            x = run(Halving(config, features, name=f"halving{i + 1}"), x, masks[-1])
            skips.append(x)
        for i, features in enumerate(config.unet_widths):
            x = run(Down(config, features, name=f"down{i + 1}"), x, masks[-1])
            skips.append(x)
        # From here on there is a row for each pass, which is one voice, or all together.
        passes = s // config.together
        seen = fitted(cues, x.shape[1]).astype(x.dtype)
        if config.together > 1:
            seen = jnp.concatenate([seen[:, i] for i in range(s)], axis=-1)[:, None]
        seen = seen.reshape(x.shape[0] * passes, *seen.shape[2:])

        def repeated(x: Array) -> Array:
            return jnp.repeat(x, passes, axis=0) if passes > 1 else x

        masks = [repeated(mask) for mask in masks]
        fused = jnp.concatenate([seen * masks[-1].astype(x.dtype), repeated(x[:, :, 0])], axis=-1)
        if config.attention_heads:
            attend = attention.BottleneckAttention(config.attention_heads, name="attention")
            fused = attend(fused, masks[-1][:, :, 0]).astype(fused.dtype)
        x = fused[:, :, None]
        widths = [config.unet_first[-1], *config.unet_widths[:-1]]
        skips.pop()
        for i, features in enumerate(reversed(widths)):
            x = run(Up(config, features, name=f"up{i + 1}"), x, masks[-1])
            x = jnp.concatenate([x, repeated(skips.pop())], axis=-1)
        double = Doubling(config, config.unet_first[0], name="doubling1")
        x = double(x)[:, : masks[0].shape[1]]
        norm = layers.batch_norm(config, "doubling1_norm")
        x = jax.nn.relu(norm(x, masks[0], train=train))
        x = jnp.concatenate([x, repeated(skips.pop())], axis=-1)
        # A small variance, or all masks would begin near +- their limit, without a gradient.
        double = Doubling(config, 2 * config.together, 0.05, name="doubling2")
        x = double(x)[:, :num_frames]
        masks = config.mask_limit * jnp.tanh(x.astype(jnp.float32))
        masks = masks.reshape(-1, passes, num_frames, config.num_bins, config.together, 2)
        masks = masks.transpose(0, 1, 4, 2, 3, 5).reshape(-1, s, num_frames, config.num_bins, 2)
        real = masking.length_mask(lengths, num_frames)
        return jnp.where(real[:, None, :, None, None], masks, 0.0)


def fitted(cues: Float[Array, "b s v c"], num_steps: int) -> Float[Array, "b s n c"]:
    """The first `num_steps` frames; 0 where there are fewer."""
    cues = cues[:, :, :num_steps]
    return jnp.pad(cues, ((0, 0), (0, 0), (0, num_steps - cues.shape[2]), (0, 0)))
