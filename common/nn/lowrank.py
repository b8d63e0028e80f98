"""Layers whose kernels are products of small factors: start from a dense kernel, go back to one.

Three different structures for a filter over k frames and c channels, often confused:

* `LowRankPointwise`, P = V U: the mixing of channels has rank r, c r + r f parameters;
* `SpectroTemporalConv`, W_f = sum_r u_fr v_fr^T: every filter has rank R, f R (k + c) parameters;
* depthwise-separable (common/nn/conv.py), W_f[n, c] = d_c[n] p_f[c]: filters share one temporal
  filter per input channel.

Source: the separable and rank-R filters of Idiap-RR-11-2019; the best factors of a trained kernel
are its truncated SVD (Eckart and Young, 1936), whose squared error is the tail of the spectrum.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


class Decomposition(NamedTuple):
    """A map as components: the first r of them are the best map of rank r, for every r.

    The squared error of that map is the sum of the squared `singular` values behind the r-th.
    """

    singular: Float[np.ndarray, "r"]
    v: Float[np.ndarray, "c r"]
    u: Float[np.ndarray, "r f"]

    def factors(self, rank: int) -> dict[str, Array]:
        """Parameters of `LowRankPointwise`."""
        v, u = jnp.asarray(self.v[:, :rank], jnp.float32), jnp.asarray(self.u[:rank], jnp.float32)
        return {"v": v, "u": u}

    def lost(self, rank: int | None) -> float:
        """The share of the energy that the best map of this rank lacks; None loses nothing."""
        energy = np.square(self.singular)
        return 0.0 if rank is None else float(energy[rank:].sum() / max(energy.sum(), 1e-30))


RIDGE = 1e-6  # of the mean energy of an input, added to all of them in `decompose`


def decompose(
    matrix: Float[np.ndarray, "c f"],
    second_moment: Float[np.ndarray, "c c"] | None = None,
    scale: Float[np.ndarray, "f"] | None = None,
) -> Decomposition:
    """The components of a map W by what they do: to its weights, or to its outputs on real inputs.

    Without `second_moment` it is the SVD of W. With C = X'X of inputs X [n, c] (not centred: the
    map has no bias) the error of another map V is ||X W - X V||^2 = ||C^(1/2) (W - V)||^2, so that
    the best one of rank r is C^(-1/2) times the truncated SVD of C^(1/2) W = L S R' (Eckart and
    Young). As C^(-1/2) L_r S_r R_r' = W R_r R_r', no inverse is needed: W is followed by a
    projection on the first principal components R_r of its outputs, the eigenvectors of W'CW, whose
    eigenvalues are S^2. With `scale` d, the factors that the outputs are multiplied with behind the
    map (those of a batch normalisation), the error is that of the scaled outputs: W d in place of
    W, and 1/d behind the projection.

    Where inputs span fewer directions than c, C says nothing of the others; `RIDGE` makes them
    count a little, so that W is whole again at full rank. In float64, on the host; both factors
    get one size.

    Source: Zhang et al. (2016, arXiv:1505.06798, section 3.1: principal components of responses)
    and Chen et al. (2021, DRONE: data-aware low-rank compression), which has the same optimum.
    """
    matrix = np.asarray(matrix, np.float64)
    most = min(matrix.shape)
    if second_moment is None:
        if scale is not None:
            raise ValueError("decompose: `scale` is of outputs, and goes with `second_moment`")
        left, singular, u = np.linalg.svd(matrix, full_matrices=False)
        v = left * singular[None, :]
    else:
        moment = np.asarray(second_moment, np.float64)
        moment = (moment + moment.T) / 2 + RIDGE * np.mean(np.diag(moment)) * np.eye(len(moment))
        scale = np.ones(matrix.shape[1]) if scale is None else np.asarray(scale, np.float64)
        # An output that is multiplied with 0 may be anything, but is still to have a value.
        scale = np.maximum(np.abs(scale), 1e-6 * max(np.abs(scale).max(), 1e-30))
        scaled = matrix * scale[None, :]
        energy, axes = np.linalg.eigh(scaled.T @ moment @ scaled)
        energy, axes = energy[::-1][:most], axes[:, ::-1][:, :most]
        singular = np.sqrt(np.maximum(energy, 0.0))
        v, u = scaled @ axes, axes.T / scale[None, :]
    sizes = [np.linalg.norm(v, axis=0), np.linalg.norm(u, axis=1)]
    root = np.sqrt(sizes[0] / np.maximum(sizes[1], 1e-30))
    root = np.where(root > 0, root, 1.0)
    return Decomposition(singular, v / root[None, :], u * root[:, None])


def non_orthogonality(factor: Float[Array, "*n c r"]) -> Float[Array, ""]:
    """||V'V - I||^2 (Frobenius), added over all V: 0 where each one's columns are orthonormal.

    The semi-orthogonal constraint of TDNN-F (Povey et al. 2018, section 2.1) as a penalty.
    """
    gram = jnp.einsum("...ci,...cj->...ij", factor, factor, precision="highest")
    return jnp.sum(jnp.square(gram - jnp.broadcast_to(jnp.eye(gram.shape[-1]), gram.shape)))


def factor_energy(left: Float[Array, "*n c r"], right: Float[Array, "*n r f"]) -> Float[Array, ""]:
    """(||V||^2 + ||U||^2) / 2, added over all pairs: at least the nuclear norm of V U.

    Equal to it at the least of all factors with that product, as those of `factor_matrix` are
    (Srebro, Rennie and Jaakkola 2004, lemma 1). So its minimisation with a loss of the product is
    that with the sum of singular values.
    """
    return 0.5 * (jnp.sum(jnp.square(left)) + jnp.sum(jnp.square(right)))


def filter_factors(
    params: dict[str, Array], rank: int
) -> tuple[Float[Array, "f k r"], Float[Array, "f r c"]]:
    """The temporal and spectral parts of every filter of a `SpectroTemporalConv`."""
    temporal, spectral = params["temporal"], params["spectral"]
    temporal = temporal.reshape(temporal.shape[0], rank, -1).transpose(2, 0, 1)
    return temporal, spectral.reshape(spectral.shape[0], rank, -1).transpose(2, 1, 0)


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
