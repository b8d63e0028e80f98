"""Attributions of a small recogniser: complete, additive, the same alone, padded and on devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import task as asr_task
from common import errors, parallel
from common.analysis import attribution, explaining, objective, recordings
from tests.asr import test_task as tones

ROWS = 8


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tones.make_task(tmp_path_factory.mktemp("task"), ctc_weight=0.5)


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


def explained(task, variables, target, batch, name="log_mel", devices=1, **options):
    """Attributions of the real rows, and their parts."""
    mesh = parallel.make_mesh(jax.devices()[:devices])
    made = explaining.Explainer(task, name, target, mesh)
    batch = made.chosen(parallel.place(variables, mesh), recordings.padded(batch, devices))
    values, lengths, silence = made.read(variables, batch)
    baseline = options.pop("baseline", "silence")
    starts = made.starts(baseline, values, lengths, silence, 0)
    found = made.explain(variables, batch, values, lengths, starts, **options)
    parts = made.parts(batch)
    return found[: len(parts)], parts, lengths


def check_linearity(task, variables, first, second, batch, name="log_mel"):
    """The map of 2 F - G is twice that of F less that of G, with the same nodes."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    made = [explaining.Explainer(task, name, target, mesh) for target in (first, second)]
    both = recordings.padded(batch, 1)
    for one in made:
        both = one.chosen(variables, both)
    values, _, _ = made[0].read(variables, both)
    rng = np.random.default_rng(0)
    start = values + 0.1 * rng.normal(size=values.shape).astype(np.float32)
    both = jax.tree.map(jnp.asarray, both)
    rows = len(both["mask"])
    nodes, weights = (np.tile(np.float32(x), (rows, 1)) for x in attribution.gauss_legendre(3))

    def score(one, x):
        return one.target.score(variables, both, {name: x}).sum(axis=1, keepdims=True)

    def path(fn):
        points = (jnp.asarray(x) for x in (start, values, nodes, weights))
        return np.asarray(jax.jit(lambda *args: attribution.path_gradients(fn, *args))(*points))

    f, g = (path(lambda x, one=one: score(one, x)) for one in made)
    mixed = path(lambda x: 2 * score(made[0], x) - score(made[1], x))
    scale = np.abs(f).max() + np.abs(g).max()
    assert min(np.abs(f).max(), np.abs(g).max()) > 0
    np.testing.assert_allclose(mixed, 2 * f - g, atol=2e-5 * scale)


def test_features_that_no_parameters_change_stand_in_for_the_audio(task, variables):
    """The loss with them is the same, at other parameters too, and does not read the audio."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    data = objective.collect([tones.make_batch(task.tokenizer, rows=(4, 7))], mesh)
    goal = objective.Objective(task, 0, 0)
    given = jax.jit(lambda *args: goal.with_features(*args))(variables, data)
    (group,) = given.groups
    silent = objective.Data(({**group, "audio": jnp.zeros_like(group["audio"])},))
    moved = {**variables, "params": jax.tree.map(lambda x: 1.1 * x, variables["params"])}
    loss = jax.jit(lambda *args: goal(*args))
    wanted = float(loss(moved, data))
    assert float(loss(moved, silent)) == pytest.approx(wanted, rel=1e-6)
    without = objective.Data(
        tuple({**one, "audio": jnp.zeros_like(one["audio"])} for one in data.groups)
    )
    assert float(loss(moved, without)) != pytest.approx(wanted, rel=1e-3)


def test_it_is_linear(task, variables, batch):
    check_linearity(task, variables, "transcript", "channel:1", batch)


@pytest.fixture(scope="module")
def batch(task):
    """Two recordings of different lengths, the second one without a transcript."""
    batch = explaining.trim(tones.make_batch(task.tokenizer, rows=(0, 4)))
    batch["labels_lengths"][1] = 0
    return batch


@pytest.mark.parametrize("target", ["transcript", "ctc_transcript", "tokens", "channel"])
def test_it_is_complete(task, variables, batch, target):
    found, _, _ = explained(task, variables, target, batch)
    for row in found:
        assert row.converged
        assert row.gap_percent <= 0.1
        wanted = row.score.sum() - row.baseline_score.sum()
        # With one scalar the gap says it; with several errors may cancel, not add.
        assert row.values.sum() == pytest.approx(wanted, abs=0.001 * abs(wanted) + 1e-5)


def test_tokens_and_words_add_up_to_the_transcript(task, variables, batch):
    whole, _, _ = explained(task, variables, "transcript", batch)
    tokens, token_parts, _ = explained(task, variables, "tokens", batch)
    words, word_parts, _ = explained(task, variables, "words", batch)
    for row in range(2):
        most = np.abs(whole[row].values).max()
        for parts in (tokens, words):
            # Other programs round otherwise: 1e-3 of the largest cell, and the nodes may differ.
            np.testing.assert_allclose(
                parts[row].values.sum(axis=0), whole[row].values[0], atol=2e-3 * most
            )
            assert parts[row].score.sum() == pytest.approx(whole[row].score[0], rel=1e-4)
    assert [part.text for part in token_parts[0]] == [*"CAT", "</s>"]
    assert [part.text for part in word_parts[0]] == ["CAT", "</s>"]
    # Scalars beyond a row's own parts are nothing.
    assert not tokens[0].values[len(token_parts[0]) :].any()


def test_words_of_a_transcript(task, variables):
    batch = explaining.trim(tones.make_batch(task.tokenizer, rows=(4, 7)))
    words, parts, _ = explained(task, variables, "words", batch, max_nodes=16)
    tokens, token_parts, _ = explained(task, variables, "tokens", batch, max_nodes=16)
    assert [[part.text for part in row] for row in parts] == [
        ["CAT", "DOG", "</s>"],
        ["FISH", "CAT", "</s>"],
    ]
    # "CAT DOG": three tokens, then the space with the word that it begins, then the end.
    sizes = np.cumsum([0, 3, 4, 1])
    for k, (first, last) in enumerate(itertools.pairwise(sizes)):
        np.testing.assert_allclose(
            words[0].score[k], tokens[0].score[first:last].sum(), rtol=1e-4, atol=1e-4
        )
    assert parts[0][1].start == token_parts[0][4].start  # not that of the space
    assert len(words[0].values) >= 3


def test_alone_equals_padded_and_one_device_eight(task, variables, batch):
    options = {"max_nodes": 16, "baseline": "noise"}
    together, _, lengths = explained(task, variables, "transcript", batch, **options)
    spread, _, _ = explained(task, variables, "transcript", batch, devices=8, **options)
    for row in range(2):
        most = np.abs(together[row].values).max()
        own = {name: array[row : row + 1] for name, array in batch.items()}
        (alone,), _, _ = explained(task, variables, "transcript", explaining.trim(own), **options)
        length = lengths[row]
        near = {"atol": 1e-4 * most}  # float32, other shapes: 1e-5 of sums of many cells
        np.testing.assert_allclose(together[row].values[:, :length], alone.values, **near)
        assert not together[row].values[:, length:].any()
        np.testing.assert_allclose(spread[row].values, together[row].values, **near)
        assert spread[row].nodes == together[row].nodes == alone.nodes


def test_silence_is_what_the_front_end_makes_of_it(task, variables, batch):
    """With bands normalised over an utterance their mean, 0: -13.8 less its mean in float32 is
    1e-6, which the deviation of a band that does not move, 1e-5 ** 0.5, makes 1e-3."""
    values, lengths, silence = task.explanation.inputs["log_mel"].read(
        variables, jax.tree.map(jnp.asarray, batch)
    )
    assert np.abs(silence).max() < 0.01
    assert values.shape == silence.shape
    assert lengths.tolist() == [30, 70]
    assert list(task.explanation.inputs) == ["log_mel", "waveform"]


def test_inputs_replace_what_the_network_sees(task, variables, batch):
    """Given its own features or samples, a target gives its own score; silence gives another."""
    batch = jax.tree.map(jnp.asarray, batch)
    for name, one in task.explanation.inputs.items():
        values, _, silence = one.read(variables, batch)
        target = task.explanation.targets["transcript"]

        @jax.jit
        def score(given, target=target, name=name):
            def run(given):
                return target.score(variables, batch, {name: given} if given is not None else {})

            return jax.vmap(run, in_axes=None, out_axes=None, axis_size=1, axis_name=parallel.AXIS)(
                given
            )

        np.testing.assert_allclose(score(values), score(None), rtol=1e-4)
        assert not np.allclose(score(silence), score(None), rtol=2e-4, atol=0)


def test_other_methods(task, variables, batch):
    options = {"max_nodes": 16}
    integrated, _, _ = explained(task, variables, "transcript", batch, **options)
    averaged, _, lengths = explained(
        task, variables, "transcript", batch, method="averaged_gradients", **options
    )
    mesh = parallel.make_mesh(jax.devices()[:1])
    made = explaining.Explainer(task, "log_mel", "transcript", mesh)
    values, _, silence = made.read(variables, made.chosen(variables, batch))
    difference = values.astype(np.float64) - silence
    for row in range(2):
        np.testing.assert_allclose(
            averaged[row].values * difference[row][None], integrated[row].values, rtol=1e-5
        )
    saliency, _, _ = explained(task, variables, "transcript", batch, method="saliency")
    product, _, _ = explained(task, variables, "transcript", batch, method="input_x_gradient")
    np.testing.assert_allclose(
        np.abs(product[0].values), saliency[0].values * np.abs(values[:1]), rtol=1e-4, atol=1e-7
    )
    assert saliency[0].values.min() >= 0
    smooth = [
        explained(task, variables, "transcript", batch, method="smoothgrad", seed=seed)[0][0]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(smooth[0].values, smooth[1].values)
    assert not np.allclose(smooth[0].values, smooth[2].values)
    assert np.isnan(smooth[0].gap_percent)
    assert not smooth[0].values[:, lengths[0] :].any()


def test_the_channel_is_chosen_once(task, variables, batch):
    mesh = parallel.make_mesh(jax.devices()[:1])
    made = explaining.Explainer(task, "log_mel", "channel", mesh)
    chosen = made.chosen(variables, batch)
    encoded, lengths = task.model.apply(
        variables,
        jnp.asarray(batch["audio"]),
        jnp.asarray(batch["audio_lengths"]),
        train=False,
        mask=jnp.asarray(batch["mask"]),
        method="encode",
    )
    for row in range(2):
        norms = np.square(encoded[row, : lengths[row]]).sum(axis=0)
        assert chosen["channel"][row] == norms.argmax()
    fixed = explaining.Explainer(task, "log_mel", "channel:3", mesh)
    chosen = fixed.chosen(variables, batch)
    values, _, _ = fixed.read(variables, chosen)
    sums = [np.asarray(encoded[row, : lengths[row], 3]).sum() for row in range(2)]
    np.testing.assert_allclose(
        fixed.score(variables, chosen, values)[:, 0], sums, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["nonsense", "channel:x", "tokens:1"])
def test_a_target_that_is_not_there(task, name):
    with pytest.raises(
        errors.UserError, match=r"transcript .*ctc_transcript.*channel or channel:N"
    ):
        explaining.find_target(task, name)
    with pytest.raises(errors.UserError, match=r"log_mel .*waveform"):
        explaining.find_input(task, name)
    with pytest.raises(errors.UserError, match="channels 0 to"):
        explaining.find_target(task, "channel:100000")


def test_a_ctc_model_has_its_own_targets(tmp_path):
    task = tones.make_task(tmp_path, loss="ctc")
    assert list(task.explanation.targets) == ["transcript", "tokens", "words", "channel"]
    assert isinstance(task, asr_task.AsrTask)
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = explaining.trim(tones.make_batch(task.tokenizer, rows=(0, 4)))
    whole, _, _ = explained(task, variables, "transcript", batch, max_nodes=16)
    tokens, parts, _ = explained(task, variables, "tokens", batch, max_nodes=16)
    for row in range(2):
        assert tokens[row].score.sum() == pytest.approx(whole[row].score[0], rel=1e-4)
        most = np.abs(whole[row].values).max()
        np.testing.assert_allclose(
            tokens[row].values.sum(axis=0), whole[row].values[0], atol=2e-3 * most
        )
    assert [part.text for part in parts[1]] == [*"CAT DOG", "</s>"]
