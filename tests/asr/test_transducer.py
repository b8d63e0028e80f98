"""Transducer loss against path enumeration, a published fixture and naive autodiff."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import transducer
from common import flops

# The classic B=2 T=4 U=2 V=3 case of warp-transducer's test suite: unnormalised scores, costs, and
# gradient of the summed costs with respect to the scores.
FIXTURE_LABELS = np.array([[1, 2], [1, 1]], np.int32)
FIXTURE_COSTS = np.array([4.28065, 3.93844])


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), np.float64).reshape(2, 4, 3, 3)


FIXTURE_SCORES = numbers(
    """
    .065357 .787530 .081592 .529716 .750675 .754135 .609764 .868140 .622532
    .668522 .858039 .164539 .989780 .944298 .603168 .946783 .666203 .286882
    .094184 .366674 .736168 .166680 .714154 .399400 .535982 .291821 .612642
    .324241 .800764 .524106 .779195 .183314 .113745 .240222 .339470 .134160
    .505562 .051597 .640290 .430733 .829473 .177467 .320700 .042883 .302803
    .675178 .569537 .558474 .083132 .060165 .107958 .748615 .943918 .486356
    .418199 .652408 .024243 .134582 .366342 .295830 .923670 .689929 .741898
    .250005 .603430 .987289 .592606 .884672 .543450 .660770 .377128 .358021
    """
)
FIXTURE_GRADIENT = numbers(
    """
    -.186844 -.062555 .249399 -.203377 .202399 .000977 -.141016 .079123 .061893
    -.011552 -.081280 .092832 -.154257 .229433 -.075176 -.246593 .146405 .100188
    -.012918 -.061593 .074512 -.055986 .219831 -.163845 -.497627 .209240 .288387
    .013605 -.030220 .016615 .113925 .062781 -.176706 -.667078 .367659 .299419
    -.356344 -.055347 .411691 -.096922 .029459 .067463 -.063518 .027654 .035863
    -.154499 -.073942 .228441 -.166790 -.000088 .166878 -.172370 .105565 .066804
    .023875 -.118256 .094381 -.104707 -.108934 .213642 -.369844 .180118 .189726
    .025714 -.079462 .053748 .122328 -.238789 .116460 -.598687 .302203 .296484
    """
)


def enumerate_paths(log_blank: np.ndarray, log_label: np.ndarray) -> float:
    """log of the sum over all alignments of one row, [l, u + 1] and [l, u]: brute force."""
    length, u = log_blank.shape[0], log_label.shape[1]
    totals = []
    # The last move is always the blank of the last frame; the others come in any order.
    for labels_at in itertools.combinations(range(length - 1 + u), u):
        t = k = 0
        total = 0.0
        for move in range(length - 1 + u):
            if move in labels_at:
                total += log_label[t, k]
                k += 1
            else:
                total += log_blank[t, k]
                t += 1
        totals.append(total + log_blank[t, k])
    return float(np.logaddexp.reduce(totals))


def node_logprobs(logits, labels):
    logp = jax.nn.log_softmax(logits)
    label = jnp.take_along_axis(logp[:, :, :-1], labels[:, None, :, None], axis=3)[..., 0]
    return logp[..., 0], label


def naive_loss(encoder, prediction, kernel, bias, labels, frame_lengths, label_lengths):
    """All logits at once and a node-by-node lattice, differentiated by autodiff."""
    labels = jnp.pad(labels, ((0, 0), (0, 1)))  # so that there is always a column to read
    prediction = jnp.pad(prediction, ((0, 0), (0, 1), (0, 0)))
    hidden = jnp.tanh(encoder[:, :, None] + prediction[:, None])
    blank, label = node_logprobs(hidden @ kernel + bias[None, None, None], labels)

    def row(above, t):
        """alpha[t] from alpha[t - 1] + blank[t - 1]: along the labels, [b] at a time."""

        def node(left, k):
            alpha = jnp.logaddexp(above[:, k], left)
            return alpha + label[:, t, jnp.minimum(k, label.shape[2] - 1)], alpha

        none = jnp.full(above.shape[:1], -1e30, above.dtype)
        _, alpha = jax.lax.scan(node, none, jnp.arange(above.shape[1]))
        after_blank = alpha.T + blank[:, t]
        return after_blank, after_blank

    start = jnp.full(blank.shape[::2], -1e30, blank.dtype).at[:, 0].set(0)
    _, after_blank = jax.lax.scan(row, start, jnp.arange(blank.shape[1]))
    rows = jnp.arange(blank.shape[0])
    losses = -after_blank[frame_lengths - 1, rows, label_lengths]
    return jnp.where(frame_lengths > 0, losses, 0)


def random_joint(seed, b, length, u, h, v, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=(b, length, h)),
        rng.normal(size=(b, u + 1, h)),
        rng.normal(size=(h, v)) / math.sqrt(h),
        0.1 * rng.normal(size=v),
    )
    labels = jnp.asarray(rng.integers(1, v, (b, u)), jnp.int32)
    return [jnp.asarray(x, dtype) for x in arrays], labels


def jitted_value_and_grad(loss, argnums=0, has_aux=False):
    return jax.jit(jax.value_and_grad(loss, argnums, has_aux))


def i32(*values):
    return jnp.asarray(values, jnp.int32)


# ----------------------------------------------------------------------------- lattice


def test_lattice_equals_enumeration_for_all_small_sizes():
    rng = np.random.default_rng(0)
    sizes = list(itertools.product(range(1, 5), range(5)))  # (frames, labels), ragged in one batch
    blank = rng.normal(size=(len(sizes), 4, 5)).astype(np.float32) - 1
    label = rng.normal(size=(len(sizes), 4, 4)).astype(np.float32) - 1
    lengths = [jnp.asarray(x, jnp.int32) for x in zip(*sizes)]
    got = jax.jit(transducer.lattice_logprob)(blank, label, *lengths)
    expected = [
        enumerate_paths(blank[i, :length, : u + 1], label[i, :length, :u])
        for i, (length, u) in enumerate(sizes)
    ]
    # float32 sums of at most 8 terms: a few units of 1e-7 on values near 10.
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_lattice_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        blank, label = rng.normal(size=(2, 4, 4)) - 1, rng.normal(size=(2, 4, 3)) - 1
        weights = jnp.asarray([1.0, -0.5])

        def value(x, y):
            return jnp.sum(weights * transducer.lattice_logprob(x, y, i32(4, 3), i32(3, 2)))

        gradients = jax.jit(jax.grad(value, (0, 1)))(jnp.asarray(blank), jnp.asarray(label))
        step = 1e-5  # error of a central difference: step^2 = 1e-10 plus 1e-16 / step = 1e-11
        for which, (x, gradient) in enumerate(zip((blank, label), gradients)):
            # One batch of shifted inputs for each sign: cheaper than a call per entry.
            shifts = step * np.eye(x.size).reshape(x.size, *x.shape)

            @jax.jit
            @jax.vmap
            def shifted(shift, which=which):
                xs = [jnp.asarray(blank), jnp.asarray(label)]
                return value(*[a + shift if i == which else a for i, a in enumerate(xs)])

            numeric = (shifted(shifts) - shifted(-shifts)) / (2 * step)
            np.testing.assert_allclose(numeric.reshape(x.shape), gradient, atol=1e-8)


def test_occupancies_sum_to_frames_and_labels():
    rng = np.random.default_rng(2)
    blank, label = rng.normal(size=(3, 6, 5)), rng.normal(size=(3, 6, 4))
    lengths = i32(6, 4, 0), i32(4, 2, 0)
    gradient = jax.grad(lambda *x: jnp.sum(transducer.lattice_logprob(*x, *lengths)), (0, 1))
    to_blank, to_label = jax.jit(gradient)(
        jnp.asarray(blank, jnp.float32), jnp.asarray(label, jnp.float32)
    )
    # Every alignment takes one blank per frame and one arc per label.
    np.testing.assert_allclose(to_blank.sum(axis=(1, 2)), [6, 4, 0], rtol=1e-5)
    np.testing.assert_allclose(to_label.sum(axis=(1, 2)), [4, 2, 0], rtol=1e-5)


def test_float32_occupancies_of_a_long_row_are_exact():
    """alpha * arc * beta / total would be wrong by 1e-4 at a log-probability of -1300."""
    rng = np.random.default_rng(11)
    blank = rng.normal(size=(1, 150, 41)) - 7
    label = rng.normal(size=(1, 150, 40)) - 7

    def occupancies(dtype):
        gradient = jax.grad(
            lambda *x: jnp.sum(transducer.lattice_logprob(*x, i32(150), i32(40))), (0, 1)
        )
        return jax.jit(gradient)(jnp.asarray(blank, dtype), jnp.asarray(label, dtype))

    single = occupancies(jnp.float32)
    with jax.enable_x64(True):
        double = occupancies(jnp.float64)
    for x, y in zip(single, double):
        # 190 steps, each with a few roundings of 6e-8.
        np.testing.assert_allclose(x, y, atol=1e-5)


# ----------------------------------------------------------------------------- full loss


def joint_of_scores(scores):
    """Encoder, prediction, kernel and bias whose logits are the given scores [b, l, n, v].

    Each hidden unit stands for one node of one row: it saturates at +1 there and at -1 elsewhere.
    """
    b, length, n, v = scores.shape
    row, frame, step = np.meshgrid(*map(np.arange, (b, length, n)), indexing="ij")
    row, frame, step = row.ravel(), frame.ravel(), step.ravel()
    here = (np.arange(b)[:, None, None] == row) & (np.arange(length)[None, :, None] == frame)
    encoder = np.where(here, 20.0, -40.0)
    prediction = np.where(np.arange(n)[None, :, None] == step, 20.0, -40.0)
    prediction = np.broadcast_to(prediction, (b, n, row.size))
    kernel = scores.reshape(-1, v) / 2
    return [jnp.asarray(x) for x in (encoder, prediction, kernel, kernel.sum(axis=0))]


def test_warp_transducer_fixture():
    encoder, prediction, kernel, bias = [
        x.astype(jnp.float32) for x in joint_of_scores(FIXTURE_SCORES)
    ]

    def loss(kernel, bias):
        lengths = i32(4, 4), i32(2, 2)
        labels = jnp.asarray(FIXTURE_LABELS)
        costs = transducer.rnnt_loss(encoder, prediction, kernel, bias, labels, *lengths)
        return jnp.sum(costs), costs

    (_, costs), (d_kernel, d_bias) = jitted_value_and_grad(loss, (0, 1), has_aux=True)(kernel, bias)
    # The published figures have six digits.
    np.testing.assert_allclose(costs, FIXTURE_COSTS, atol=1e-5)
    # A unit is +1 at its node and -1 at all others: d_kernel = 2 * d_score - d_bias.
    d_scores = (d_kernel + d_bias[None]) / 2
    np.testing.assert_allclose(d_scores, FIXTURE_GRADIENT.reshape(-1, 3), atol=2e-6)


def test_value_and_gradient_equal_naive_autodiff():
    with jax.enable_x64(True):
        arrays, labels = random_joint(3, b=4, length=10, u=8, h=6, v=7, dtype=np.float64)
        lengths = i32(10, 5, 0, 1), i32(8, 3, 0, 0)
        weights = jnp.asarray([1.0, 2.0, 3.0, -1.0])

        def weighted(loss_fn, **options):
            return jitted_value_and_grad(
                lambda *x: jnp.sum(weights * loss_fn(*x, labels, *lengths, **options)),
                argnums=(0, 1, 2, 3),
            )

        expected, expected_grads = weighted(naive_loss)(*arrays)
        # A chunk that does not divide the 16 tiles, and all of them at once.
        for chunk_nodes in (200, None):
            compute = weighted(transducer.rnnt_loss, chunk_nodes=chunk_nodes, dtype=jnp.float64)
            got, grads = compute(*arrays)
            np.testing.assert_allclose(got, expected, rtol=1e-12)
            for x, y in zip(grads, expected_grads):
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_hessian_vector_product_through_the_closed_form():
    """Curvature analysis differentiates the gradient forward; compare with a finite difference."""
    with jax.enable_x64(True):
        arrays, labels = random_joint(4, b=1, length=3, u=2, h=3, v=4, dtype=np.float64)

        @jax.jit
        @jax.grad
        def gradient(kernel):
            arguments = *arrays[:2], kernel, arrays[3], labels, i32(3), i32(2)
            return transducer.rnnt_loss(*arguments, dtype=jnp.float64).sum()

        kernel, direction, step = arrays[2], jnp.ones_like(arrays[2]).at[0, 1].set(-2.0), 1e-5
        _, product = jax.jvp(gradient, (kernel,), (direction,))
        numeric = gradient(kernel + step * direction) - gradient(kernel - step * direction)
        np.testing.assert_allclose(product, numeric / (2 * step), atol=1e-8)


def test_second_derivatives_of_a_row_far_shorter_than_the_batch():
    # Behind the end of a row lie hundreds of diagonals that no alignment reaches.
    arrays, labels = random_joint(6, b=1, length=200, u=6, h=3, v=4)
    lengths, moved = (i32(7), i32(2)), jnp.ones_like(arrays[2])

    def bent(encoder, prediction, labels):
        def slope(kernel):
            arguments = encoder, prediction, kernel, arrays[3], labels, *lengths
            return jax.grad(lambda *x: transducer.rnnt_loss(*x).sum(), (0, 2))(*arguments)

        return jax.jvp(slope, (arrays[2],), (moved,))[1]

    padded = jax.jit(bent)(*arrays[:2], labels)
    alone = jax.jit(bent)(arrays[0][:, :7], arrays[1][:, :3], labels[:, :2])
    np.testing.assert_allclose(padded[0][:, :7], alone[0], atol=1e-5)
    np.testing.assert_allclose(padded[1], alone[1], atol=1e-5)
    assert not np.any(padded[0][:, 7:])


def test_padding_changes_neither_value_nor_gradient():
    arrays, labels = random_joint(5, b=3, length=20, u=10, h=8, v=11)
    lengths = i32(12, 20, 0), i32(4, 10, 0)

    def loss(encoder, prediction, labels, lengths):
        costs = transducer.rnnt_loss(encoder, prediction, *arrays[2:], labels, *lengths)
        return jnp.sum(costs), costs

    grad = jitted_value_and_grad(loss, (0, 1), has_aux=True)
    (_, costs), (d_encoder, d_prediction) = grad(*arrays[:2], labels, lengths)
    alone = slice(0, 1)
    (_, cost), (d_encoder_alone, d_prediction_alone) = grad(
        arrays[0][alone, :12],
        arrays[1][alone, :5],
        labels[alone, :4],
        (lengths[0][alone], lengths[1][alone]),
    )
    # The tiles group other nodes: only the order of float32 additions differs.
    np.testing.assert_allclose(costs[0], cost[0], rtol=1e-6)
    np.testing.assert_allclose(d_encoder[0, :12], d_encoder_alone[0], atol=1e-6)
    np.testing.assert_allclose(d_prediction[0, :5], d_prediction_alone[0], atol=1e-6)
    assert not np.any(d_encoder[0, 12:])
    assert not np.any(d_prediction[0, 5:])
    assert costs[2] == 0
    assert not np.any(d_encoder[2])
    assert not np.any(d_prediction[2])
    # What lies in the padding does not matter.
    garbage = arrays[0].at[0, 12:].set(1e4), arrays[1].at[0, 5:].set(-1e4)
    (_, same), _ = grad(*garbage, labels.at[0, 4:].set(3), lengths)
    np.testing.assert_array_equal(costs, same)


@pytest.mark.parametrize(("length", "u"), [(1, 3), (5, 0), (1, 0)])
def test_single_frame_and_empty_labels(length, u):
    arrays, labels = random_joint(6, b=2, length=length, u=u, h=4, v=5)
    lengths = jnp.full(2, length, jnp.int32), jnp.full(2, u, jnp.int32)
    loss, grads = jitted_value_and_grad(
        lambda *x: jnp.sum(transducer.rnnt_loss(*x, labels, *lengths)), argnums=(0, 1, 2, 3)
    )(*arrays)
    expected = jax.jit(lambda *x: naive_loss(*x, labels, *lengths))(*arrays).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_extreme_logits_stay_finite():
    arrays, labels = random_joint(7, b=2, length=9, u=4, h=4, v=5)
    arrays[2] = arrays[2] * 1e4
    lengths = i32(9, 9), i32(4, 4)
    loss, grads = jitted_value_and_grad(
        lambda *x: jnp.sum(transducer.rnnt_loss(*x, labels, *lengths)), argnums=(0, 1, 2, 3)
    )(*arrays)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_bfloat16_products_keep_a_float32_loss():
    arrays, labels = random_joint(8, b=2, length=16, u=8, h=32, v=16)
    lengths = i32(16, 12), i32(8, 6)

    def compute(dtype):
        return jitted_value_and_grad(
            lambda *x: jnp.sum(transducer.rnnt_loss(*x, labels, *lengths, dtype=dtype)),
            argnums=(0, 2),
        )(*arrays)

    expected, (d_encoder, d_kernel) = compute(jnp.float32)
    got, (d_encoder_16, d_kernel_16) = compute(jnp.bfloat16)
    assert got.dtype == jnp.float32
    # bfloat16 rounds to 2^-9 = 0.2 %; errors of single nodes average out in the loss.
    np.testing.assert_allclose(got, expected, rtol=2e-3)
    assert np.linalg.norm(d_encoder_16 - d_encoder) < 0.02 * np.linalg.norm(d_encoder)
    assert np.linalg.norm(d_kernel_16 - d_kernel) < 0.02 * np.linalg.norm(d_kernel)


def test_fastemit_scales_label_arcs_only():
    arrays, labels = random_joint(9, b=1, length=4, u=3, h=4, v=5)
    lengths = i32(4), i32(3)

    def bias_gradient(fastemit):
        def loss(bias):
            arguments = *arrays[:3], bias, labels, *lengths
            return transducer.rnnt_loss(*arguments, fastemit=fastemit).sum()

        return jitted_value_and_grad(loss)(arrays[3])

    (value, plain), (same, regularised) = bias_gradient(0.0), bias_gradient(0.5)
    assert value == same
    hidden = jnp.tanh(arrays[0][:, :, None] + arrays[1][:, None])

    @jax.jit
    @jax.grad
    def label_term(bias):
        """Expected log-probability of the label arcs, their posterior held fixed."""
        blank, label = node_logprobs(hidden @ arrays[2] + bias[None, None, None], labels)
        to_label = jax.grad(lambda x: jnp.sum(transducer.lattice_logprob(blank, x, *lengths)))
        return -jnp.sum(jax.lax.stop_gradient(to_label(label)) * label)

    expected = 0.5 * label_term(arrays[3])
    np.testing.assert_allclose(regularised - plain, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("h", "v", "share"), [(640, 32, 0.1), (320, 1024, 0.1), (320, 10_000, 0.1)]
)
def test_memory_stays_far_below_one_full_tensor(h, v, share):
    b, length, u = 8, 200, 60
    shapes = [(b, length, h), (b, u + 1, h), (h, v), (v,)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    integers = [jax.ShapeDtypeStruct(s, jnp.int32) for s in [(b, u), (b,), (b,)]]
    gradient = jax.grad(lambda *x: jnp.sum(transducer.rnnt_loss(*x)), argnums=(0, 1, 2, 3))
    compiled = jax.jit(gradient).lower(*arguments, *integers).compile()
    full = b * length * u * max(v, h) * 4
    assert compiled.memory_analysis().temp_size_in_bytes < share * full


def test_products_of_the_output_layer_are_counted():
    """h x v multiply-accumulates a node and product: the logits twice, and two gradients."""
    b, length, u, h, v = 3, 21, 10, 13, 17  # whole neither in tiles nor in chunks
    arrays, labels = random_joint(0, b, length, u, h, v)
    arguments = *arrays, labels, jnp.full(b, length), jnp.full(b, u)

    def loss(*arguments):
        return jnp.sum(transducer.rnnt_loss(*arguments, chunk_nodes=128))

    logits = 2 * (b * length * (u + 1)) * h * v
    assert flops.count(jax.make_jaxpr(loss)(*arguments)) == logits
    gradients = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(*arguments)
    assert flops.count(gradients) == 4 * logits


def test_loss_falls_to_zero_on_one_example():
    arrays, labels = random_joint(10, b=1, length=6, u=3, h=16, v=8)

    @jax.jit
    def step(arrays):
        loss, grads = jax.value_and_grad(
            lambda x: transducer.rnnt_loss(*x, labels, i32(6), i32(3)).sum()
        )(arrays)
        return loss, [x - 0.3 * g for x, g in zip(arrays, grads)]

    for _ in range(200):
        loss, arrays = step(arrays)
    assert loss < 0.05
