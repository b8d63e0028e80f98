"""Self-attention over the steps of the bottleneck: every 40 ms sees all others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BottleneckAttention(nn.Module):
    """LayerNorm(x + attention(x)) over true steps (Vaswani et al. 2017, arXiv:1706.03762).

    Queries, keys and values are linear maps of all channels, as in the CS753 team's plan; what the
    heads see is put side by side, without a further map.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Float[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        """float32; 0 where the mask is."""
        b, n, d = x.shape
        x = x.astype(jnp.float32)
        query, key, value = (
            nn.Dense(d, name=name)(x).reshape(b, n, self.heads, d // self.heads)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bihd,bjhd->bhij", query, key) / (d // self.heads) ** 0.5
        # Of a row without a true step all weigh alike: no NaN, and its output is 0 anyway.
        logits = jnp.where(mask[:, None, None, :] > 0, logits, -1e30)
        weights = jax.nn.softmax(logits, axis=-1)
        heard = jnp.einsum("bhij,bjhd->bihd", weights, value).reshape(b, n, d)
        y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x + heard)
        return y * mask[:, :, None]
