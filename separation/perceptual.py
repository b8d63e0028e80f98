"""Measures of how speech sounds, by packages that need not be there: STOI, ESTOI, PESQ."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from common import errors

log = logging.getLogger(__name__)

PACKAGES = {"stoi": "pystoi", "estoi": "pystoi", "pesq": "pesq"}
_PESQ = {16000: "wb", 8000: "nb"}  # ITU-T P.862.2 and P.862.1 by their rates

# (clean, processed) -> how good; raises Unmeasurable.
Measure = Callable[[Float[np.ndarray, "t"], Float[np.ndarray, "t"]], float]


class Unmeasurable(Exception):
    """A recording of which a measure says nothing; the message says why."""


def measures(names: Sequence[str], sample_rate_hz: int) -> dict[str, Measure]:
    """The measures called so, as far as their packages are installed; a log line names the others.

    "stoi" and "estoi" (Taal et al. 2011; Jensen and Taal 2016), from 0 to 1; "pesq", a mean opinion
    score, is "pesq_wb" at 16 kHz and "pesq_nb" at 8 kHz. Raises UserError for any other name.
    """
    if unknown := [name for name in names if name not in PACKAGES]:
        raise errors.UserError(
            f"config.judges.quality={tuple(names)}: {unknown[0]!r} is none of "
            f"{', '.join(PACKAGES)}."
        )
    found: dict[str, Measure] = {}
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            log.info("No %s: it takes the package %s (pip install).", name, PACKAGES[name])
        elif name != "pesq":
            found[name] = _stoi(sample_rate_hz, name == "estoi")
        elif sample_rate_hz not in _PESQ:
            log.info("No pesq: it is defined at 8 and 16 kHz, not at %d Hz.", sample_rate_hz)
        else:
            found[f"pesq_{_PESQ[sample_rate_hz]}"] = _pesq(sample_rate_hz)
    return found


def _stoi(rate_hz: int, extended: bool) -> Measure:
    import pystoi

    def measure(clean: np.ndarray, processed: np.ndarray) -> float:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                return float(pystoi.stoi(clean, processed, rate_hz, extended=extended))
        except RuntimeWarning as error:  # it would have said 1e-5
            raise Unmeasurable("too little speech for STOI") from error

    return measure


def _pesq(rate_hz: int) -> Measure:
    import pesq

    def measure(clean: np.ndarray, processed: np.ndarray) -> float:
        if not (clean.any() and processed.any()):
            raise Unmeasurable("silence for PESQ")
        try:
            return float(pesq.pesq(rate_hz, clean, processed, _PESQ[rate_hz]))
        except pesq.PesqError as error:
            said = error.args[0] if error.args else type(error).__name__
            said = said.decode() if isinstance(said, bytes) else str(said)
            raise Unmeasurable(f"PESQ: {said.strip()}") from error

    return measure
