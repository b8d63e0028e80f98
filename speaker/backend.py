"""What happens to embeddings before they are compared, and comparison by cosine.

The usual order is: subtract the mean of the training set, project by LDA, scale to unit length,
then cosine or `plda`. Networks trained with a margin do best with mean and cosine alone; LDA and
PLDA help across domains.
"""

import dataclasses
import warnings

import numpy as np
import scipy.sparse
import sklearn.discriminant_analysis
from jaxtyping import Float, Int, Shaped

from common import errors


class EmbeddingError(errors.UserError, ValueError):
    """These embeddings cannot be used as asked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Transform:
    """x -> (x - mean) @ projection, then to unit length if `normalise`.

    mean f64[d]; projection f64[d, p], the identity for mean subtraction alone.
    """

    mean: Float[np.ndarray, "d"]
    projection: Float[np.ndarray, "d p"]
    normalise: bool = True

    def __call__(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n p"]:
        """Transformed rows in float64. Raises EmbeddingError for rows that cannot be scaled."""
        if embeddings.shape[1] != len(self.mean):
            raise EmbeddingError(
                f"this transform takes embeddings of {len(self.mean)} dimensions, got "
                f"{embeddings.shape[1]}. Use the model that it was fitted with."
            )
        projected = (embeddings - self.mean) @ self.projection
        return length_normalise(projected) if self.normalise else projected


def length_normalise(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of unit Euclidean length, in float64.

    Makes the embeddings of a Gaussian model more Gaussian (Garcia-Romero and Espy-Wilson, Analysis
    of i-vector length normalization, Interspeech 2011). Raises EmbeddingError for zero rows and for
    values that are not finite, which would become NaN scores.
    """
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))
    if bad.any():
        raise EmbeddingError(
            f"{np.count_nonzero(bad)} of {len(bad)} embeddings are zero or not finite, the first "
            f"is row {int(np.argmax(bad))}. Look at the recordings that they come from."
        )
    return embeddings / lengths


def fit_mean(embeddings: Float[np.ndarray, "n d"], *, normalise: bool = True) -> Transform:
    """Subtracts the mean embedding of a training set."""
    mean = np.mean(embeddings, axis=0, dtype=np.float64)
    return Transform(mean, np.eye(len(mean)), normalise)


def fit_lda(
    embeddings: Float[np.ndarray, "n d"],
    speakers: Shaped[np.ndarray, "n"],
    dimensions: int,
    *,
    shrinkage: float | int | str | None = None,
    normalise: bool = True,
) -> Transform:
    """Fisher's linear discriminants, fitted by scikit-learn, `dimensions` of them.

    In the new coordinates the covariance within speakers (over n) is the identity, and directions
    come in falling order of the variance between speakers. `shrinkage` in [0, 1] pulls the
    covariance within speakers to a multiple of the identity, which few data need; "auto" chooses
    it (Ledoit and Wolf). Takes five times the memory of the embeddings in float64.

    Raises EmbeddingError when there are too few speakers, utterances or dimensions.
    """
    embeddings = np.asarray(embeddings, np.float64)
    num_speakers = len(np.unique(speakers))
    limit = min(embeddings.shape[1], num_speakers - 1)
    if not 1 <= dimensions <= limit:
        raise EmbeddingError(
            f"LDA to {dimensions} dimensions is impossible: embeddings of {embeddings.shape[1]} "
            f"dimensions from {num_speakers} speakers allow 1 to {limit}. Set fewer dimensions or "
            "give more speakers."
        )
    if len(embeddings) == num_speakers:
        raise EmbeddingError(
            f"LDA needs speakers with several utterances, but each of the {num_speakers} has one."
        )
    discriminants = sklearn.discriminant_analysis.LinearDiscriminantAnalysis(
        solver="svd" if shrinkage is None else "eigen", shrinkage=shrinkage
    )
    with warnings.catch_warnings():  # collinear dimensions are dropped, which is what is wanted
        warnings.filterwarnings("ignore", "Variables are collinear")
        # A speaker with one utterance says nothing about the covariance within; that is no fault.
        warnings.filterwarnings("ignore", "Only one sample available")
        discriminants.fit(embeddings, speakers)
    projection = discriminants.scalings_[:, :dimensions]
    if projection.shape[1] < dimensions:
        raise EmbeddingError(
            f"LDA finds only {projection.shape[1]} directions that tell the speakers apart, not "
            f"{dimensions}: the embeddings span few dimensions. Set fewer dimensions."
        )
    return Transform(embeddings.mean(0), projection, normalise)


def speaker_means(
    embeddings: Float[np.ndarray, "n d"], speakers: Shaped[np.ndarray, "n"]
) -> tuple[Shaped[np.ndarray, "s"], Float[np.ndarray, "s d"], Int[np.ndarray, "s"]]:
    """(labels in sorted order, mean embedding, number of utterances) of each speaker.

    The means of unit rows are not of unit length; `cosine_matrix` does not care.
    """
    names, member, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    return names, group_sums(embeddings, member, len(names)) / counts[:, None], counts


def group_sums(
    rows: Float[np.ndarray, "n d"], group: Int[np.ndarray, "n"], num_groups: int
) -> Float[np.ndarray, "g d"]:
    """Sum of the rows of each group in float64, without a sorted copy of them."""
    n = len(rows)
    member = scipy.sparse.csr_array((np.ones(n), (group, np.arange(n))), shape=(num_groups, n))
    return member @ np.asarray(rows, np.float64)


def cosine_matrix(
    enrol: Float[np.ndarray, "m d"], test: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "m n"]:
    """Cosine of every pair of rows. Raises EmbeddingError as `length_normalise` does."""
    return length_normalise(enrol) @ length_normalise(test).T


def cosine_trials(
    enrol: Float[np.ndarray, "m d"],
    test: Float[np.ndarray, "n d"],
    enrol_index: Int[np.ndarray, "k"],
    test_index: Int[np.ndarray, "k"],
    *,
    block: int = 4096,
) -> Float[np.ndarray, "k"]:
    """Cosine of the given pairs of rows, `block` trials at a time."""
    enrol, test = length_normalise(enrol), length_normalise(test)
    scores = np.empty(len(enrol_index))
    for start in range(0, len(scores), block):
        rows = slice(start, start + block)
        scores[rows] = np.einsum("kd,kd->k", enrol[enrol_index[rows]], test[test_index[rows]])
    return scores
