"""Layers whose kernels are products of small factors: start from a dense kernel, go back to one.

Three different structures for a filter over k frames and c channels, often confused:

* `LowRankPointwise`, P = V U: the mixing of channels has rank r, c r + r f parameters;
* `SpectroTemporalConv`, W_f = sum_r u_fr v_fr^T: every filter has rank R, f R (k + c) parameters;
* depthwise-separable (common/nn/conv.py), W_f[n, c] = d_c[n] p_f[c]: filters share one temporal
  filter per input channel.

Source: the separable and rank-R filters of Idiap-RR-11-2019; the best factors of a trained kernel
are its truncated SVD (Eckart and Young, 1936), whose squared error is the tail of the spectrum.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.nn import conv, masking


class LowRankPointwise(nn.Module):
    """A linear map of every `stride`-th frame through `rank` channels, `v [c,r] @ u [r,f]`."""

    FACTORS = ("v", "u")  # what the composed filters are the product of (`common.analysis`)

    features: int
    rank: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b n f"]:
        initializer = nn.initializers.lecun_normal()
        v = self.param("v", initializer, (x.shape[-1], self.rank), jnp.float32)
        u = self.param("u", initializer, (self.rank, self.features), jnp.float32)
        x = x[:, :: self.stride].astype(self.dtype)
        return conv.pointwise(conv.pointwise(x, v.astype(self.dtype)), u.astype(self.dtype))


class SpectroTemporalConv(nn.Module):
    """Filters of rank R over channels ("spectrum") and time: 1x1 to R f, depthwise, sum over R.

    The stride is the temporal filter's: on the 1x1 it would drop frames before anything low-passed
    them. Parameters `spectral [c, R f]` and `temporal [k, R f]`, the R parts one after the other.
    """

    FACTORS = ("temporal", "spectral")  # of each filter, `rank` parts (`common.analysis`)

    features: int
    rank: int
    kernel_size: int
    stride: int = 1
    causal: bool = False
    dtype: Any = jnp.float32
    zero_padded: bool = False  # the caller's word that x is 0 beyond its true ends

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], lengths: Int[Array, "b"]
    ) -> tuple[Float[Array, "b n f"], Int[Array, "b"]]:
        wide = self.rank * self.features
        spectral = self.param(
            "spectral", nn.initializers.lecun_normal(), (x.shape[-1], wide), jnp.float32
        )
        # The sum over R parts multiplies the variance by R.
        temporal = self.param(
            "temporal",
            nn.initializers.variance_scaling(1.0 / self.rank, "fan_in", "truncated_normal"),
            (self.kernel_size, wide),
            jnp.float32,
        )
        x = x.astype(self.dtype)
        if not self.zero_padded:
            x = masking.zero_padding(x, lengths)  # the 1x1 has no bias: zeros stay
        y = conv.pointwise(x, spectral.astype(self.dtype))
        y = conv.depthwise_conv(y, temporal.astype(self.dtype), self.stride, self.causal)
        y = y.reshape(*y.shape[:2], self.rank, self.features).sum(axis=2)
        return y, masking.conv_lengths(lengths, self.stride)


def factor_matrix(
    matrix: Float[Array, "c f"], rank: int
) -> tuple[Float[Array, "c r"], Float[Array, "r f"]]:
    """The best factors of this rank (truncated SVD), each given the root of the singular values.

    The split of the scale is a free choice (v s, u / s is the same map); the even one gives both
    factors gradients of one size. Raises ValueError if rank is not in 1..min(c, f).
    """
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank {rank} of a {matrix.shape} matrix: choose 1..{min(matrix.shape)}")
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    root = jnp.sqrt(singular[:rank])
    return left[:, :rank] * root[None, :], root[:, None] * right[:rank]


def factor_pointwise(params: dict[str, Array], rank: int) -> dict[str, Array]:
    """Parameters of `LowRankPointwise` from those of a dense `conv.Pointwise`."""
    v, u = factor_matrix(params["kernel"], rank)
    return {"v": v, "u": u}


def merge_pointwise(params: dict[str, Array]) -> dict[str, Array]:
    """Parameters of the dense `conv.Pointwise` that computes what the factored layer does."""
    return {"kernel": jnp.matmul(params["v"], params["u"], precision="highest")}


def factor_conv(params: dict[str, Array], rank: int) -> dict[str, Array]:
    """Parameters of `SpectroTemporalConv` from a dense `conv.Conv`: an SVD of every filter.

    Exact when rank = min(k, c). Raises ValueError if rank is not in 1..min(k, c).
    """
    kernel = params["kernel"]
    k, c, f = kernel.shape
    temporal, spectral = jax.vmap(lambda filters: factor_matrix(filters, rank), in_axes=2)(kernel)
    return {
        "temporal": temporal.transpose(1, 2, 0).reshape(k, rank * f),  # [f, k, r]
        "spectral": spectral.transpose(2, 1, 0).reshape(c, rank * f),  # [f, r, c]
    }


def merge_conv(params: dict[str, Array], rank: int) -> dict[str, Array]:
    """Parameters of the dense `conv.Conv` that computes what the rank-R layer does."""
    spectral, temporal = params["spectral"], params["temporal"]
    spectral = spectral.reshape(spectral.shape[0], rank, -1)
    temporal = temporal.reshape(temporal.shape[0], rank, -1)
    return {"kernel": jnp.einsum("krf,crf->kcf", temporal, spectral, precision="highest")}


def compose_separable(
    depthwise: Float[Array, "k c"], pointwise: Float[Array, "c f"]
) -> Float[Array, "k c f"]:
    """The dense kernel of a depthwise convolution followed by a pointwise map."""
    return depthwise[:, :, None] * pointwise[None, :, :]


def stable_rank(singular: Float[Array, "*n r"]) -> Float[Array, "*n"]:
    """Energy over the largest energy, sum s^2 / max s^2; 0 for a zero matrix.

    Between 1 and the rank, insensitive to tiny singular values (Rudelson and Vershynin, 2007).
    """
    energy = jnp.square(singular)
    largest = jnp.max(energy, axis=-1)
    return jnp.sum(energy, axis=-1) / jnp.where(largest > 0, largest, 1.0)


def entropy_rank(singular: Float[Array, "*n r"]) -> Float[Array, "*n"]:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, 2007, equation 1).

    The number of equal singular values with the same entropy; 0 for a zero matrix.
    """
    total = jnp.sum(singular, axis=-1, keepdims=True)
    share = singular / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)), axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0.0)
