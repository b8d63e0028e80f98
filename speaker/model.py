"""The speaker network: front end, encoder, classification head, from one config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common import errors, parallel, sections
from common.audio import frontend
from common.nn import marks, masking, norm
from speaker import ecapa, head, margins, resnet, xvector

KINDS = ("xvector", "resnet", "ecapa")


def make_encoder(config: Any) -> nn.Module:
    """The encoder that `config.model` describes: features, lengths -> embeddings."""
    model = config.model
    options = {"axis_name": parallel.AXIS, "dtype": jnp.dtype(config.dtype)}
    options["deviation"] = model.deviation
    for name in ("pooling", "embedding_size"):
        if model[name]:
            options[name] = model[name]
    try:
        if model.kind == "xvector":
            c, pooled = model.channels or 512, model.pooled_channels or 1500
            table = ((c, 5, 1), (c, 3, 2), (c, 3, 3), (c, 1, 1), (pooled, 1, 1))
            options |= {"embedding_layer": model.embedding_layer, "padding": model.padding}
            return xvector.XVector(xvector.XVectorConfig(frame_layers=table, **options))
        if model.kind == "resnet":
            for name in ("zero_init_residual", "embedding_norm"):
                options[name] = model[name]
            shape = resnet.resnet(model.depth, model.channels or 32, **options)
            other = {name: tuple(model[name]) for name in ("num_blocks", "widths") if model[name]}
            return resnet.ResNet(dataclasses.replace(shape, **other))
        if model.kind == "ecapa":
            options |= {"channels": model.channels or 512}
            options |= {"aggregation_channels": model.pooled_channels or 1536}
            options["embedding_norm"] = model.embedding_norm
            return ecapa.ECAPA(ecapa.ECAPAConfig(**options))
    except ValueError as error:
        raise errors.UserError(f"config.model: {error}") from error
    raise errors.UserError(
        f"config.model.kind={model.kind!r} is unknown; choose one of {', '.join(KINDS)}."
    )


@dataclasses.dataclass(frozen=True)
class GivenFeatures:
    """In place of a front end: features of `size` dimensions come from the data."""

    size: int
    normalize: str

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"num_mels={self.size} must be positive")
        if self.normalize not in frontend.NORMALIZATIONS:
            known = ", ".join(frontend.NORMALIZATIONS)
            raise ValueError(f"normalize={self.normalize!r}: choose one of {known}")


class SpeakerNet(nn.Module):
    """Front end, encoder and head; `embed` is what verification needs.

    What goes in is audio `[b, t]`, or with `GivenFeatures` features `[b, l, f]`.
    """

    front_end: frontend.LogMelConfig | GivenFeatures
    encoder: nn.Module
    loss: margins.MarginConfig
    num_classes: int
    num_shards: int = 1
    running_mean: bool = False

    def setup(self) -> None:
        if self.running_mean:
            self.centre = norm.RunningMean(axis_name=parallel.AXIS)
        self.marked = marks.Features()
        self.head = head.MarginHead(self.loss, self.num_classes, self.num_shards)

    def embed(
        self,
        inputs: Float[Array, "b t *f"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
        distort: Callable[[Array, Array], Array] | None = None,
    ) -> Float[Array, "b d"]:
        """Embeddings in float32; 0 in rows that are not real.

        `distort(features, lengths) -> features` comes between front end and encoder (SpecAugment).
        """
        features, lengths = self.features(inputs, lengths, train=train, mask=mask)
        if distort is not None:
            features = distort(features, lengths)
        return self.encoder(features, lengths, train=train, mask=mask)

    def features(
        self,
        inputs: Float[Array, "b t *f"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
    ) -> tuple[Float[Array, "b l m"], Int[Array, "b"]]:
        """What the front end gives to the encoder, and its lengths, 0 for masked rows."""
        lengths = masking.fold_row_mask(lengths, mask)
        inputs = masking.zero_padding(inputs, lengths)
        if isinstance(self.front_end, GivenFeatures):
            features = frontend.normalized(inputs, lengths, self.front_end.normalize)
        else:
            features, lengths = self.marked(frontend.log_mel(inputs, lengths, self.front_end))
        if self.running_mean:
            frames = masking.float_mask(lengths, features.shape[1])
            features = self.centre(features, frames, train=train)
        return features, lengths

    def __call__(
        self,
        inputs: Float[Array, "b t *f"],
        lengths: Int[Array, "b"],
        labels: Int[Array, "b"],
        margin: Any,
        scale: Any,
        *,
        train: bool,
        mask: Bool[Array, "b"],
        distort: Callable[[Array, Array], Array] | None = None,
    ) -> margins.MarginLoss:
        """The rows' classification losses at `margin` and `scale`."""
        embeddings = self.embed(inputs, lengths, train=train, mask=mask, distort=distort)
        return self.head(embeddings, labels, margin, scale, mask=mask, train=train)


def make_model(config: Any, num_classes: int) -> SpeakerNet:
    """The network of a config for so many training speakers."""
    loss = config.loss
    if config.dtype not in ("float32", "bfloat16"):
        raise errors.UserError(f"config.dtype={config.dtype!r}: choose float32 or bfloat16.")
    features = config.features
    running = features.normalize == "running"
    each = "none" if running else features.normalize  # what the front end does to each recording
    try:
        if features.kind == "given":
            front_end = GivenFeatures(features.num_mels, each)
        else:
            front_end = sections.build(
                frontend.LogMelConfig,
                features,
                normalize=each,
                sample_rate_hz=config.data.sample_rate_hz,
            )
    except ValueError as error:
        raise errors.UserError(f'config.features: {error} or (speaker) "running"') from error
    return SpeakerNet(
        front_end=front_end,
        encoder=make_encoder(config),
        loss=sections.build(margins.MarginConfig, loss),
        num_classes=num_classes,
        num_shards=head.SHARDS if loss.sharded else 1,
        running_mean=running,
    )


def sharded(model: SpeakerNet) -> tuple[str, ...]:
    """The parameters whose rows lie over the devices, see `common.parallel.specs`."""
    specs = head.param_specs(model.loss, model.num_shards)
    return tuple(f"head/{name}" for name, spec in specs.items() if spec == parallel.ROWS)


def init(model: SpeakerNet, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of the network; without a head where there are no two classes, as of one that
    was converted from elsewhere (speaker/wespeaker.py)."""
    given = isinstance(model.front_end, GivenFeatures)
    inputs = jnp.zeros((1, 50, model.front_end.size) if given else (1, 8000))
    lengths = jnp.full((1,), inputs.shape[1], jnp.int32)
    labels, mask = jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool)
    if model.num_classes < 2:
        options = {"train": False, "mask": mask, "method": "embed"}
        return dict(model.init(key, inputs, lengths, **options))
    return dict(model.init(key, inputs, lengths, labels, 0.0, 1.0, train=False, mask=mask))
