"""The flags of the modes that look inside a model; nothing heavy is imported here."""

import dataclasses

from common.mode_options import option

BATCH_NORMS = ("frozen", "batch", "recalibrated")
ALONG = ("random", "pca", "hessian", "between", "gradient")
NORMALIZATIONS = ("filter", "layer", "weight", "none")
METHODS = (
    *("integrated_gradients", "averaged_gradients", "saliency", "input_x_gradient"),
    *("smoothgrad",),
)
BASELINES = ("silence", "mean", "noise", "blurred")


@dataclasses.dataclass(frozen=True)
class LandscapeOptions:
    """Flags of --mode=landscape."""

    along: str = option("random", "directions", ALONG)
    dims: int = option(2, "1: a line, 2: a plane")
    points: int = option(25, "on each axis, an odd number")
    extent: float = option(0.0, "axes go from -extent to extent; 0: 1, or what shows a trajectory")
    normalize: str = option("filter", "the directions, by the weights", NORMALIZATIONS)
    vectors: bool = option(False, "biases and scales of norms move too")
    batch_norm: str = option("frozen", "statistics of batch normalisation", BATCH_NORMS)
    split: str = option("", "evaluation split, or train (default: the first of data.eval)")
    batches: int = option(0, "how many of the split; 0: all", least=0)
    to: int = option(-1, "with --along=between: the step of the other checkpoint (-1: the first)")
    film: bool = option(False, "the same plane around every checkpoint of the run")
    metric_points: int = option(
        0, "on each axis, for the task's own metric (running averages or recalibrated); 0: none"
    )
    curvature_points: int = option(0, "on each axis, for |least / largest eigenvalue|; 0: none")
    seed: int = option(0, "of random directions", least=0)
    name: str = option("", "of the folder in analysis/ (default: by --along and --dims)")


@dataclasses.dataclass(frozen=True)
class HessianOptions:
    """Flags of --mode=hessian."""

    top: int = option(5, "eigenpairs of each end of the spectrum")
    steps: int = option(40, "of Lanczos")
    probes: int = option(4, "random vectors for trace and density")
    gauss_newton: bool = option(False, "of the network linearised: no second derivatives of it")
    blocks: bool = option(False, "the largest eigenvalue and the trace of every layer too")
    float64: bool = option(
        False, "all in double precision, layers included: slower, and twice the memory"
    )
    split: str = option("", "evaluation split, or train (default: the first of data.eval)")
    batches: int = option(0, "how many of the split; 0: all", least=0)
    seed: int = option(0, "of the random vectors", least=0)


@dataclasses.dataclass(frozen=True)
class AttributionOptions:
    """Flags of --mode=attribution."""

    files: tuple = option((), "recordings; without any, the first --n of --split")
    split: str = option("", "(default: the first of data.eval)")
    n: int = option(4, "recordings of the split")
    against: str = option("", "the other recording of a trial, or a separator's enrolment")
    max_seconds: float = option(30.0, "of a recording; more may not fit the memory")
    target: str = option(
        "", "what is explained, several with commas between (a wrong one lists all)"
    )
    input: str = option("", "what it is attributed to (default: the task's first)")
    method: str = option("integrated_gradients", "of attribution", METHODS)
    baseline: str = option("silence", "where the path starts", BASELINES)
    tolerance: float = option(0.1, "of completeness, per cent of F(x) - F(baseline)")
    max_nodes: int = option(
        256, "of the quadrature; it starts with 16, and doubles them where they are too few"
    )
    judge: bool = option(False, "deletion and insertion curves, and a random model beside")
    film: bool = option(False, "the same map for every checkpoint of the run")
    panel: bool = option(False, "two voices below each other, all targets side by side")
    seed: int = option(0, "of noises and random orders", least=0)
