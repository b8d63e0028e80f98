"""The modes that look inside a model, as the command line lists them."""

import importlib
from collections.abc import Callable

from common.analysis import settings
from common.package import Context, Mode, Package


def _late(module: str) -> Callable[[Package, Context], None]:
    """`run` of a module, which is imported when the mode starts: matplotlib and others are slow."""

    def run(package: Package, context: Context) -> None:
        importlib.import_module(f"common.analysis.{module}").run(package, context)

    return run


_TAKES = frozenset({"checkpoint"})

MODES = {
    "landscape": Mode(
        _late("landscape"),
        "the loss around a checkpoint",
        _TAKES,
        options=settings.LandscapeOptions,
    ),
    "hessian": Mode(
        _late("hessian"), "the curvature of the loss", _TAKES, options=settings.HessianOptions
    ),
    "attribution": Mode(
        _late("attribution_mode"),
        "what of its input an output hangs on",
        _TAKES,
        options=settings.AttributionOptions,
    ),
}
