"""The recogniser: front end, ContextNet, and a transducer or CTC on top, from one config."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from asr import contextnet, decode, filterbank, prediction, settings
from common import errors, parallel, sections
from common.audio import frontend
from common.nn import marks, masking

# Settings of `config.features` that only one kind of front end has.
LEARNED = ("rank", "filter_ms", "filters", "pooling", "pool", "compression", "start", "rate")
OF_KIND = {"compat": "log_mel"} | dict.fromkeys((*LEARNED, "frozen_steps"), "learned")
# Settings without effect beside another: (of which, where that is, the settings).
WITHOUT_EFFECT = (
    ("compat", "kaldi", ("floor",)),
    ("filters", "max_pooled", ("pool", "compression", "floor")),
    ("rate", 0.0, ("frozen_steps",)),
)


def _check_features(config: Any) -> None:
    """Raises ValueError for settings that have no effect, or that a causal encoder cannot have."""
    features, default = config.features, settings.default_config().features
    for name, kind in OF_KIND.items():
        if features.kind != kind and features[name] != default[name]:
            raise ValueError(
                f"{name}={features[name]!r} has no effect with kind={features.kind!r}, only with "
                f"kind={kind!r}: leave it at {default[name]!r}"
            )
    for name, value, others in WITHOUT_EFFECT:
        for other in others:
            if features[name] == value and features[other] != default[other]:
                raise ValueError(
                    f"{other}={features[other]!r} has no effect with {name}={value!r}: leave it at "
                    f"{default[other]!r}"
                )
    if features.rate < 0 or features.frozen_steps < 0:
        raise ValueError(
            f"rate={features.rate} and frozen_steps={features.frozen_steps} cannot be negative"
        )
    if config.encoder.causal and features.normalize in ("mean", "utterance"):
        raise ValueError(
            f"normalize={features.normalize!r} takes the whole recording, but encoder.causal wants "
            "no later frame to be seen: choose causal or none"
        )


def front_end_config(config: Any) -> frontend.LogMelConfig | filterbank.FilterbankConfig:
    """The front end that `config.features` describes; UserError for settings without effect."""
    features, rate = config.features, config.data.sample_rate_hz
    try:
        _check_features(config)
        if features.kind == "learned":
            return sections.build(
                filterbank.FilterbankConfig,
                features,
                num_filters=features.num_mels,
                window_samples=round(features.window_ms * rate / 1000),
                hop_samples=round(features.hop_ms * rate / 1000),
                taps=round(features.filter_ms * rate / 1000),
                sample_rate_hz=rate,
                rank=features.rank or None,
                axis_name=parallel.AXIS,
                dtype=jnp.dtype(config.dtype),
            )
        if features.kind != "log_mel":
            raise ValueError(f"kind={features.kind!r} is unknown; choose log_mel or learned")
        return sections.build(frontend.LogMelConfig, features, sample_rate_hz=rate)
    except ValueError as error:
        raise errors.UserError(f"config.features: {error}") from error


def encoder_config(config: Any) -> contextnet.ContextNetConfig:
    """The encoder that `config.encoder` describes; 0 (ranks: 1.0) stands for None there."""
    encoder = config.encoder
    try:
        if encoder.blocks:
            blocks = contextnet.reduced(encoder.blocks).blocks
        else:
            blocks = contextnet.contextnet(
                encoder.alpha,
                kernel_size=encoder.kernel_size,
                num_convs=encoder.num_convs,
                strided_blocks=encoder.strided_blocks,
            ).blocks
        fraction = encoder.pointwise_rank_fraction
        return sections.build(
            contextnet.ContextNetConfig,
            encoder,
            blocks=blocks,
            pointwise_rank_fraction=fraction if fraction < 1 else None,
            se_reduction=encoder.se_reduction or None,
            se_window=encoder.se_window or None,
            axis_name=parallel.AXIS,
            dtype=jnp.dtype(config.dtype),
        )
    except ValueError as error:
        raise errors.UserError(f"config.encoder: {error}") from error


class Recognizer(nn.Module):
    """Front end, encoder and decoder networks.

    `front_end` is a fixed log-mel spectrum or a learned filter bank; `loss` is "transducer" or
    "ctc"; `ctc` adds a CTC head beside a transducer.
    """

    front_end: frontend.LogMelConfig | filterbank.FilterbankConfig
    encoder_config: contextnet.ContextNetConfig
    vocab_size: int
    loss: str
    ctc: bool
    embedding: int
    lstm: int
    num_layers: int
    joint_features: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if isinstance(self.front_end, filterbank.FilterbankConfig):
            self.filterbank = filterbank.Filterbank(self.front_end)
        else:
            self.marked = marks.Features()
        self.encoder = contextnet.ContextNet(self.encoder_config)
        if self.loss == "transducer":
            self.prediction = prediction.PredictionNetwork(
                self.vocab_size, self.embedding, self.lstm, self.num_layers, dtype=self.dtype
            )
            self.joint = prediction.JointNetwork(
                self.joint_features, self.vocab_size, dtype=self.dtype
            )
        if self.ctc or self.loss == "ctc":
            self.ctc_head = nn.Dense(self.vocab_size, dtype=self.dtype)
        self.outputs = marks.Outputs()

    def features(
        self,
        audio: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
    ) -> tuple[Float[Array, "b l f"], Int[Array, "b"]]:
        """What the front end gives to the encoder, and its lengths, 0 for masked rows."""
        lengths = masking.fold_row_mask(lengths, mask)
        if isinstance(self.front_end, filterbank.FilterbankConfig):
            return self.filterbank(audio, lengths, train=train, mask=mask)
        audio = masking.zero_padding(audio, lengths)
        return self.marked(frontend.log_mel(audio, lengths, self.front_end))

    def encode(
        self,
        audio: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
        distort: Callable[[Array, Array], Array] | None = None,
        dropout_keys: Key[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Int[Array, "b"]]:
        """Encoder frames and their lengths, 0 for masked rows.

        `distort(features, lengths) -> features` comes between front end and encoder (SpecAugment).
        """
        features, lengths = self.features(audio, lengths, train=train, mask=mask)
        if distort is not None:
            features = distort(features, lengths)
        return self.encoder(features, lengths, train=train, mask=mask, dropout_keys=dropout_keys)

    def heads(
        self, encoded: Float[Array, "b n d"], labels: Int[Array, "b u"]
    ) -> tuple[prediction.JointInputs | None, Float[Array, "b n v"] | None]:
        """Inputs of the transducer loss and logits of the CTC head; None for what there is not."""
        joint = logits = None
        if self.loss == "transducer":
            joint = self.joint(encoded, self.prediction(labels))
        if self.ctc or self.loss == "ctc":
            logits = self.ctc_head(encoded).astype(jnp.float32)
        return self.outputs((joint, logits))

    def __call__(
        self,
        audio: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        labels: Int[Array, "b u"],
        **options: Any,
    ) -> tuple[Int[Array, "b"], prediction.JointInputs | None, Float[Array, "b n v"] | None]:
        """Encoded lengths and `heads`; options as for `encode`."""
        encoded, lengths = self.encode(audio, lengths, **options)
        return lengths, *self.heads(encoded, labels)

    def evaluate(
        self,
        audio: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        labels: Int[Array, "b u"],
        *,
        mask: Bool[Array, "b"],
        max_symbols: int,
        blank_penalty: float = 0.0,
    ) -> tuple[tuple[Any, ...], decode.Hypotheses]:
        """What `__call__` returns, and the greedy hypotheses, from one pass of the encoder."""
        encoded, lengths = self.encode(audio, lengths, train=False, mask=mask)
        joint, logits = self.heads(encoded, labels)
        search = {"max_symbols_per_frame": max_symbols, "blank_penalty": blank_penalty}
        return (lengths, joint, logits), self._greedy(encoded, lengths, logits, search)

    def recognize(
        self,
        features: Float[Array, "b l f"],
        lengths: Int[Array, "b"],
        *,
        mask: Bool[Array, "b"],
        max_symbols: int,
        blank_penalty: float = 0.0,
    ) -> decode.Hypotheses:
        """The greedy hypotheses of features that come from elsewhere, as from an enhancer.

        They are log-mel as `front_end` computes them, before it normalises them.
        """
        lengths = masking.fold_row_mask(lengths, mask)
        features = frontend.normalized(features, lengths, self.front_end.normalize)
        encoded, lengths = self.encoder(features, lengths, train=False, mask=mask)
        logits = self.ctc_head(encoded).astype(jnp.float32) if self.loss == "ctc" else None
        search = {"max_symbols_per_frame": max_symbols, "blank_penalty": blank_penalty}
        return self._greedy(encoded, lengths, logits, search)

    def _greedy(
        self, encoded: Array, lengths: Array, logits: Array | None, search: dict[str, Any]
    ) -> decode.Hypotheses:
        if self.loss == "ctc":
            return decode.ctc_greedy(logits, lengths)
        # Linen modules do not trace inside lax.while_loop; pure functions of their variables do.
        variables = self.variables
        unbound = self.clone(parent=None)

        def predict(state: Any, tokens: Array) -> tuple[Any, Array]:
            return unbound.apply(variables, state, tokens, method="predict_step")

        def joint(frames: Array, output: Array) -> Array:
            return unbound.apply(variables, frames, output, method="node_logits")

        return decode.transducer_greedy(
            self.joint.project_encoder(encoded),
            lengths,
            predict,
            joint,
            self.prediction.initial_state(encoded.shape[0]),
            max_labels=2 * encoded.shape[1] + 8,
            label_limits=2 * lengths + 8,
            **search,
        )

    def predict_step(self, state: Any, tokens: Int[Array, "b"]) -> tuple[Any, Float[Array, "b h"]]:
        """One step of the prediction network and its projection into the joint's space."""
        state, output = self.prediction.step(state, tokens)
        return state, self.joint.project_prediction(output)

    def node_logits(
        self, frames: Float[Array, "b h"], output: Float[Array, "b h"]
    ) -> Float[Array, "b v"]:
        """Logits of one lattice node a row, from projected frames and outputs."""
        return self.joint.logits(frames, output)


def make_model(config: Any, vocab_size: int) -> Recognizer:
    """The Linen module that a config and a tokenizer's size describe."""
    decoder = config.decoder
    if decoder.loss not in ("transducer", "ctc"):
        raise errors.UserError(
            f"config.decoder.loss={decoder.loss!r} is unknown; choose transducer or ctc."
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise errors.UserError(f"config.dtype={config.dtype!r}: choose float32 or bfloat16.")
    return Recognizer(
        front_end=front_end_config(config),
        encoder_config=encoder_config(config),
        vocab_size=vocab_size,
        loss=decoder.loss,
        ctc=decoder.ctc_weight > 0,
        embedding=decoder.embedding,
        lstm=decoder.lstm,
        num_layers=decoder.num_layers,
        joint_features=decoder.joint,
        dtype=jnp.dtype(config.dtype),
    )


def init(model: Recognizer, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of the model."""
    audio, one = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
    labels, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), bool)
    return dict(model.init(key, audio, one, labels, train=False, mask=mask))
