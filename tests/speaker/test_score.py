"""`python -m speaker.score` against direct computations, on embeddings drawn at random."""

import re
import types

import numpy as np
import pytest
import scipy.stats

from speaker import backend, metrics, plda, score, vectors
from tests.speaker.conftest import failure

DIM = 6
BETWEEN = np.diag([4.0, 2.0, 1.0, 0.5, 0.25, 0.1])
WITHIN = np.diag([3.0, 0.5, 0.2, 0.1, 0.1, 0.1])
OFFSET = np.full(DIM, 2.0)


def draw(prefix, num_speakers, num_utterances, seed, shift=0.0):
    """(ids, embeddings, speakers) of a two-covariance model about OFFSET."""
    rng = np.random.default_rng(seed)
    means = rng.multivariate_normal(OFFSET + shift, BETWEEN, num_speakers)
    rows = rng.multivariate_normal(np.zeros(DIM), WITHIN, (num_speakers, num_utterances))
    names = [f"{prefix}{s}" for s in range(num_speakers)]
    ids = [f"{name}-{u}" for name in names for u in range(num_utterances)]
    speakers = [name for name in names for _ in range(num_utterances)]
    return ids, (means[:, None] + rows).reshape(-1, DIM).astype(np.float32), speakers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders train/ and eval/, and trials of all pairs of eval in a shuffled order."""
    root = tmp_path_factory.mktemp("score")
    vectors.write(root / "train", "npz", *draw("t", 60, 6, 0))
    ids, rows, speakers = draw("e", 12, 4, 1)
    vectors.write(root / "eval", "ark", ids, rows, speakers)
    pairs = [(i, j) for i in range(len(ids)) for j in range(i)]
    pairs = [pairs[k] for k in np.random.default_rng(2).permutation(len(pairs))]
    same = [speakers[i] == speakers[j] for i, j in pairs]
    lines = [f"{int(t)} {ids[i]} {ids[j]}\n" for t, (i, j) in zip(same, pairs)]
    (root / "trials").write_text("".join(lines))
    words = [
        f"{ids[i]} {ids[j]} {'target' if t else 'nontarget'}\n" for t, (i, j) in zip(same, pairs)
    ]
    (root / "kaldi_trials").write_text("".join(words))
    return types.SimpleNamespace(
        root=root, ids=ids, rows=rows.astype(np.float64), pairs=np.array(pairs), same=np.array(same)
    )


@pytest.fixture
def scores_of(data, tmp_path, command, capsys):
    """Runs the command; (what it prints, the scores it writes)."""

    def run(*options, trials="trials", embeddings="eval"):
        out = tmp_path / "scores.txt"
        given = {"--trials": data.root / trials, "--embeddings": data.root / embeddings}
        line = [str(x) for pair in given.items() for x in pair]
        score.main([*line, "--out", str(out), *map(str, options)])
        fields = [text.split() for text in out.read_text().splitlines()]
        return capsys.readouterr().out, fields, np.array([float(f[2]) for f in fields])

    return run


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def eer_of(text):
    return float(re.match(r"EER (\S+) %", text).group(1)) / 100


def test_cosines_in_the_order_of_the_trials(data, scores_of):
    text, fields, found = scores_of()
    rows = unit(data.rows)
    expected = [rows[i] @ rows[j] for i, j in data.pairs]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [f[:2] for f in fields] == [[data.ids[i], data.ids[j]] for i, j in data.pairs]
    curve = metrics.error_curve(np.array(expected), data.same)
    assert eer_of(text) == pytest.approx(metrics.eer(curve), abs=1e-4)
    assert f"minDCF(0.05) {metrics.min_dcf(curve, 0.05):.3f}" in text
    assert "(72 target, 1056 non-target trials)" in text
    assert "actDCF" not in text
    again = scores_of(trials="kaldi_trials")
    assert again[0] == text
    np.testing.assert_array_equal(again[2], found)


def test_several_lists_at_once(data, scores_of, tmp_path, command, capsys, monkeypatch):
    """Each has what it has alone, embeddings are read once, and one calibration serves all."""
    lines = (data.root / "trials").read_text().splitlines(keepends=True)
    parts = [data.root / "first.txt", data.root / "second.txt"]
    for part, path in enumerate(parts):
        path.write_text("".join(lines[part::2]))
    options = [
        "--calibrate-on",
        data.root / "kaldi_trials",
        "--utt2spk",
        data.root / "eval/utt2spk",
    ]
    alone = [scores_of(*options, trials=path.name) for path in parts]
    read, original = [], vectors.read
    monkeypatch.setattr(vectors, "read", lambda path: read.append(path) or original(path))
    seen = {}
    monkeypatch.setattr(metrics, "save_det", lambda path, curves: seen.update(curves))
    options += ["--det", tmp_path / "d.png", "--embeddings", data.root / "eval"]
    score.main([*map(str, ["--trials", *parts, *options, "--out", tmp_path / "s.txt"])])
    said = capsys.readouterr().out.splitlines()
    assert len(read) == 1
    for name, (text, fields, _) in zip(("first", "second"), alone):
        assert [line for line in said if line.startswith(name)] == [
            f"{name}: {line}" for line in text.splitlines()
        ]
        written = (tmp_path / f"s.{name}.txt").read_text().splitlines()
        assert [line.split() for line in written] == fields
    assert list(seen) == ["first", "second"]
    assert not (tmp_path / "s.txt").exists()
    twice = ("--trials", parts[0], tmp_path / "first.txt", "--embeddings", data.root / "eval")
    assert "two lists of one name" in failure(score.main, *twice)
    (data.root / "third.txt").write_text("0 e0-0 e1-0\n")
    mixed = ("--trials", parts[0], data.root / "third.txt", "--embeddings", data.root / "eval")
    said = failure(score.main, *mixed)
    assert said.startswith(
        f"speaker.score: {data.root}/third.txt: none of the 1 trials is a target"
    )
    assert not capsys.readouterr().out  # said before any list is scored


def test_what_is_subtracted(data, scores_of):
    """The training mean by default; that of --center; nothing."""
    train = data.root / "train"
    for mean, options in (
        (vectors.read(train)[1].mean(0), ("--train-embeddings", train)),
        (data.rows.mean(0), ("--train-embeddings", train, "--center", data.root / "eval")),
        (data.rows.mean(0), ("--center", data.root / "eval")),
        (np.zeros(DIM), ("--train-embeddings", train, "--center", "none")),
    ):
        rows = unit(data.rows - mean)
        expected = [rows[i] @ rows[j] for i, j in data.pairs]
        np.testing.assert_allclose(scores_of(*options)[2], expected, atol=1e-5)


def test_enrolled_speakers_are_means_of_unit_embeddings(data, scores_of):
    (data.root / "spk2utt").write_text("e0 e0-0 e0-1\ne1 e1-0 e1-1 e1-2\n")
    (data.root / "model_trials").write_text("1 e0 e0-3\n0 e0 e1-3\n0 e1 e0-3\n1 e1 e1-3\n")
    text, fields, found = scores_of(
        "--enrolment", data.root / "spk2utt", "--utt2spk", data.root / "eval" / "utt2spk",
        trials="model_trials",
    )  # fmt: skip
    rows = dict(zip(data.ids, unit(data.rows)))
    models = {
        "e0": rows["e0-0"] + rows["e0-1"],
        "e1": rows["e1-0"] + rows["e1-1"] + rows["e1-2"],
    }
    expected = [models[a] @ rows[b] / np.linalg.norm(models[a]) for a, b, _ in fields]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "(2 target, 2 non-target trials)" in text
    apart = scores_of(
        "--enrolment", data.root / "spk2utt", "--enrol-embeddings", data.root / "eval.npz",
        trials="model_trials", embeddings=copy_as_npz(data),
    )  # fmt: skip
    np.testing.assert_allclose(apart[2], found, atol=1e-6)


def copy_as_npz(data):
    path = vectors.write(data.root / "copy", "npz", data.ids, data.rows)
    path.rename(data.root / "eval.npz")
    return "eval.npz"


def test_plda_scores_are_the_ratios_of_the_model(data, scores_of):
    """Against densities, with the model fitted on its own data, means of two utterances too."""
    train_ids, train, speakers = draw("t", 60, 6, 0)
    assert len(train_ids) == len(speakers)
    fitted = score.fit_back_end("plda", None, (train, speakers), None, DIM)
    text, _, found = scores_of("--backend", "plda", "--train-embeddings", data.root / "train")
    rows = unit(data.rows - train.mean(0, dtype=np.float64))
    model = fitted.model
    total = model.between + model.within
    both = np.block([[total, model.between], [model.between, total]])
    joint = scipy.stats.multivariate_normal(np.tile(model.mean, 2), both)
    alone = scipy.stats.multivariate_normal(model.mean, total)
    i, j = data.pairs.T
    expected = joint.logpdf(np.concatenate([rows[i], rows[j]], 1))
    expected -= alone.logpdf(rows[i]) + alone.logpdf(rows[j])
    # The command fits to the same data, read in another order: EM stops at 1e-6 nats.
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert "actDCF(0.01)" in text
    assert "Cllr" in text
    assert eer_of(text) < eer_of(scores_of("--train-embeddings", data.root / "train")[0])


def test_enrolled_counts_reach_plda(data):
    """The mean of four utterances says more than one utterance in the same place."""
    _, train, speakers = draw("t", 60, 6, 0)
    fitted = score.fit_back_end("plda", 3, (train, speakers), None, DIM)
    assert len(fitted.model.mean) == 3
    rows = fitted.transform(data.rows[:2])
    zero = np.zeros(1, np.int64)

    def at(count):
        sides = score.Sides(rows[:1], np.array([count]), rows[1:], zero, zero)
        return score.score(fitted, sides)[0]

    assert abs(at(4) - at(1)) > 0.01


def test_lda_whitens_what_differs_within_speakers(data, scores_of):
    train = ("--train-embeddings", data.root / "train")
    plain, lda = (eer_of(scores_of(*train, "--backend", b)[0]) for b in ("cosine", "lda"))
    assert lda < plain
    fitted = score.fit_back_end("lda", 2, draw("t", 60, 6, 0)[1:], np.ones(DIM), DIM)
    assert fitted.transform(data.rows).shape == (48, 2)
    np.testing.assert_array_equal(fitted.transform.mean, np.ones(DIM))


@pytest.mark.parametrize(("norm", "top_k"), [("asnorm", 7), ("asnorm", None), ("snorm", None)])
def test_normalisation_against_a_loop(data, scores_of, norm, top_k):
    train = data.root / "train"
    options = ["--norm", norm, "--cohort", train] + (["--top-k", top_k] if top_k else [])
    found = scores_of(*options)[2]
    ids, rows = vectors.read(train)
    table = vectors.read_speakers(train / "utt2spk")
    owner = np.array([table[name] for name in ids])
    cohort = unit(np.stack([unit(rows[owner == s]).mean(0) for s in np.unique(owner)]))
    tested = unit(data.rows)
    against = np.sort(tested @ cohort.T, axis=1)[:, -(top_k or 60) :]
    mean, deviation = against.mean(1), against.std(1)
    i, j = data.pairs.T
    plain = np.einsum("kd,kd->k", tested[i], tested[j])
    expected = ((plain - mean[i]) / deviation[i] + (plain - mean[j]) / deviation[j]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_normalised_plda_is_no_ratio_until_calibrated(data, scores_of):
    options = ("--backend", "plda", "--train-embeddings", data.root / "train")
    options += ("--norm", "snorm", "--cohort", data.root / "train")
    text = scores_of(*options)[0]
    assert "actDCF" not in text
    assert "  Cllr" not in text
    text, _, found = scores_of(*options, "--calibrate")
    assert "Calibrated on these trials themselves" in text
    curve = metrics.error_curve(found, data.same)
    cllr = metrics.cllr(found, data.same)
    assert f"  Cllr {cllr:.3f}" in text
    assert metrics.min_cllr(curve) <= cllr < 1.2 * metrics.min_cllr(curve) + 0.02


def test_normalised_plda_knows_how_many_utterances_a_model_has():
    """Each enrolled mean is scored against the cohort with its own count."""
    rng = np.random.default_rng(3)
    model = plda.Plda(np.zeros(DIM), 2 * np.eye(DIM), np.eye(DIM))
    fitted = score.BackEnd(backend.Transform(np.zeros(DIM), np.eye(DIM)), model)
    rows, cohort = rng.normal(size=(8, DIM)), rng.normal(size=(20, DIM))
    counts, cohort_counts = np.array([3, 1, 3, 2, 1]), np.arange(20) % 4 + 1
    i, j = (index.ravel() for index in np.indices((5, 3)))
    sides = score.Sides(rows[:5], counts, rows[5:], i, j)
    raw = score.score(fitted, sides)
    found = score.normalise(fitted, sides, raw, (cohort, cohort_counts), 6)

    def standardised(value, row, count):
        options = {"enrol_counts": np.array([count]), "test_counts": cohort_counts}
        against = np.sort(plda.score_matrix(model, row[None], cohort, **options)[0])[-6:]
        return (value - against.mean()) / against.std()

    expected = [
        (standardised(s, rows[a], counts[a]) + standardised(s, rows[5 + b], 1)) / 2
        for s, a, b in zip(raw, i, j)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.fixture
def others(data, tmp_path):
    """Trials of the training speakers, every second pair within the first 60 embeddings."""
    ids, rows, speakers = draw("t", 60, 6, 0)
    pairs = np.array([(i, j) for i in range(60) for j in range(i)][::2])
    same = np.array([speakers[i] == speakers[j] for i, j in pairs])
    lines = [f"{int(t)} {ids[i]} {ids[j]}\n" for t, (i, j) in zip(same, pairs)]
    (tmp_path / "others").write_text("".join(lines))
    return types.SimpleNamespace(
        path=tmp_path / "others", rows=rows.astype(np.float64), pairs=pairs, same=same
    )


def cosines(rows, pairs):
    return np.einsum("kd,kd->k", *(unit(rows)[index] for index in pairs.T))


def test_calibration_on_other_trials(data, others, scores_of, caplog):
    """Fitted there, applied here, whatever these trials are."""
    options = ("--calibrate-on", others.path, "--calibrate-embeddings", data.root / "train")
    text, _, found = scores_of(*options)
    fitted = backend.fit_calibration(cosines(others.rows, others.pairs), others.same)
    np.testing.assert_allclose(found, fitted(cosines(data.rows, data.pairs)), atol=1e-4)
    assert f"Calibrated on 885 trials of {others.path}." in text
    assert "actDCF(0.01)" in text
    assert caplog.text == ""
    # The same trials are said to flatter.
    scores_of("--calibrate-on", data.root / "trials")
    assert "trials: 48 ids are in --calibrate-on too" in caplog.text


def test_calibration_sees_normalised_scores(data, others, scores_of):
    options = ("--norm", "snorm", "--cohort", data.root / "train")
    plain = scores_of(*options)[2]
    both = (*options, "--calibrate-on", others.path, "--calibrate-embeddings", data.root / "train")
    found = scores_of(*both)[2]
    slope, offset = np.polyfit(plain, found, 1)
    np.testing.assert_allclose(found, slope * plain + offset, atol=1e-5)
    raw = scores_of(*both[4:])[2]
    assert np.corrcoef(raw, found)[0, 1] < 0.999  # another order: not of the raw scores


def test_quality_is_of_magnitudes_and_of_durations_where_known(data, others, scores_of, caplog):
    options = ("--calibrate-embeddings", data.root / "train", "--calibrate-on", others.path)
    options += ("--quality",)
    text, _, found = scores_of(*options)
    assert ", with min_log_magnitude, max_log_magnitude." in text
    assert "No utt2dur beside" in caplog.text

    def expected(*seconds):
        scored = []
        for rows, (i, j), lengths in zip(
            (others.rows, data.rows), (others.pairs.T, data.pairs.T), seconds or (None, None)
        ):
            size = np.log(np.linalg.norm(rows, axis=1))
            columns = [np.minimum(size[i], size[j]), np.maximum(size[i], size[j])]
            if lengths is not None:
                time = np.log(np.minimum(lengths, 20))
                columns += [np.minimum(time[i], time[j]), np.maximum(time[i], time[j])]
            scored.append((cosines(rows, np.stack([i, j], 1)), np.stack(columns, 1)))
        (there, there_quality), (here, here_quality) = scored
        names = "abcd"[: there_quality.shape[1]]
        return backend.fit_calibration(there, others.same, there_quality, quality_names=names)(
            here, here_quality
        )

    np.testing.assert_allclose(found, expected(), atol=1e-3)
    drawn = np.random.default_rng(0).uniform(1, 30, size=(2, 360))
    for folder, ids, seconds in (
        ("train", draw("t", 60, 6, 0)[0], drawn[0]),
        ("eval", data.ids, drawn[1]),
    ):
        lines = [f"{name} {value:.6g}\n" for name, value in zip(ids, seconds)]
        (data.root / folder / "utt2dur").write_text("".join(lines))
    try:
        text, _, found = scores_of(*options)
    finally:
        (data.root / "train" / "utt2dur").unlink()
        (data.root / "eval" / "utt2dur").unlink()
    assert "max_log_magnitude, min_log_seconds, max_log_seconds." in text
    np.testing.assert_allclose(found, expected(drawn[0], drawn[1][: len(data.ids)]), atol=1e-3)


def test_models_of_both_lists_are_calibrated(data, scores_of):
    """One spk2utt names the models of the trials and of those that are fitted to."""
    (data.root / "spk").write_text("e0 e0-0 e0-1\ne1 e1-0 e1-1\nt0 t0-0 t0-1\nt1 t1-0 t1-1\n")
    (data.root / "here").write_text("1 e0 e0-3\n0 e0 e1-3\n0 e1 e0-3\n1 e1 e1-3\n")
    lines = [f"{int(i == j)} t{i} t{j}-{u}\n" for i in (0, 1) for j in range(4) for u in (3, 4)]
    (data.root / "there").write_text("".join(lines))
    options = ("--enrolment", data.root / "spk", "--calibrate-on", data.root / "there")
    options += ("--calibrate-embeddings", data.root / "train")
    text, _, found = scores_of(*options, trials="here")
    assert "Calibrated on 16 trials" in text
    assert np.isfinite(found).all()


def test_speakers_are_looked_for_beside_a_file_too(data, scores_of, caplog):
    """In place of each embedding counting as a speaker, which is said where it is so."""
    norm = ("--norm", "snorm", "--cohort")
    folder = scores_of(*norm, data.root / "train")[2]
    file = scores_of(*norm, data.root / "train" / "embeddings.npz")[2]
    np.testing.assert_array_equal(file, folder)
    assert "counts as another speaker" not in caplog.text
    vectors.write(data.root / "bare", "npz", *draw("t", 60, 6, 0)[:2])
    bare = scores_of(*norm, data.root / "bare" / "embeddings.npz")[2]
    assert "each embedding in it counts as another speaker" in caplog.text
    assert np.abs(bare - folder).max() > 0.01


def test_intervals_are_those_of_the_speakers(data, scores_of):
    text, _, found = scores_of("--utt2spk", data.root / "eval" / "utt2spk")
    owner = np.array([name.split("-")[0] for name in data.ids])
    drawn = metrics.resample(found, data.same, owner[data.pairs[:, 0]], owner[data.pairs[:, 1]])
    low, high = metrics.intervals(drawn)["eer"]
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in text


def test_embeddings_that_no_trial_names_may_be_bad(data, scores_of, tmp_path):
    ids, rows, speakers = draw("e", 12, 4, 1)
    rows = np.concatenate([rows, np.zeros((1, DIM), np.float32)])
    vectors.write(tmp_path / "more", "ark", [*ids, "zero"], rows, [*speakers, "nobody"])
    (tmp_path / "models").write_text("".join(f"{name} {name}\n" for name in [*ids, "zero"]))
    options = ("--center", "none")
    _, _, wanted = scores_of(*options)
    _, _, found = scores_of(*options, embeddings=tmp_path / "more")
    np.testing.assert_array_equal(found, wanted)
    _, _, found = scores_of(
        *options, "--enrolment", tmp_path / "models", embeddings=tmp_path / "more"
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_unknown_ids_stop_or_are_left_out(data, scores_of, command, caplog):
    text = (data.root / "trials").read_text() + "1 e0-0 nobody\n0 nowhere e1-0\n"
    (data.root / "more").write_text(text)
    embeddings, trials = data.root / "eval", data.root / "more"
    said = failure(score.main, "--trials", trials, "--embeddings", embeddings)
    assert "2 ids of the trial list have no embedding (nowhere, nobody)" in said
    assert "unknown: nobody" in caplog.text
    assert "unknown: nowhere" in caplog.text
    text, fields, _ = scores_of("--allow-unknown", trials="more")
    assert "2 of 1130 trials left out: unknown ids." in text
    assert len(fields) == 1128
    (data.root / "models").write_text("m e0-0 lost\n")
    (data.root / "few").write_text("1 m e0-1\n0 m e1-1\n")
    options = ("--trials", data.root / "few", "--embeddings", embeddings)
    said = failure(score.main, *options, "--enrolment", data.root / "models")
    assert "1 enrolment utterances have no embedding (lost)" in said
    # Left out, such an utterance needs no speaker.
    text, fields, _ = scores_of(
        "--allow-unknown", "--enrolment", data.root / "models",
        "--utt2spk", data.root / "eval" / "utt2spk", trials="few",
    )  # fmt: skip
    assert len(fields) == 2


def test_a_plot_is_drawn_from_the_curve(data, scores_of, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        metrics, "save_det", lambda path, curves: drawn.update({"path": path, **curves})
    )
    _, _, found = scores_of("--det", tmp_path / "det.png")
    assert drawn["path"] == tmp_path / "det.png"
    expected = metrics.error_curve(found, data.same)
    np.testing.assert_allclose(drawn["trials"].p_miss, expected.p_miss, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "plda"), "--backend=plda is fitted to a training set"),
        (("--backend", "lda"), "--backend=lda is fitted to a training set"),
        (("--lda-dim", "3"), "--lda-dim is for --backend=lda or plda"),
        (("--norm", "snorm"), "--norm=snorm needs a --cohort"),
        (("--cohort", "{root}/train"), "--cohort does nothing without --norm"),
        (("--top-k", "3"), "--top-k is for --norm=asnorm only"),
        (("--norm", "asnorm", "--cohort", "{root}/train", "--top-k", "0"), "--top-k is at least 1"),
        (
            ("--backend", "lda", "--train-embeddings", "{root}/train", "--lda-dim", "0"),
            "--lda-dim is at least 1",
        ),
        (("--train-utt2spk", "{root}/train/utt2spk"), "nothing without --train-embeddings"),
        (("--cohort-utt2spk", "{root}/train/utt2spk"), "does nothing without --cohort"),
        (("--calibrate", "--calibrate-on", "{root}/trials"), "choose one"),
        (("--calibrate-embeddings", "{root}/train"), "does nothing without --calibrate-on"),
        (("--quality",), "--quality is for --calibrate-on or --calibrate"),
        (("--quality", "--calibrate", "--enrolment", "{root}/x"), "without --enrolment"),
        (("--out", "{root}"), "is a folder: name a file"),
        (("--det", "{root}/trials/det.png"), "trials is no folder"),
        (("--det", "{root}/det.txt"), "a plot cannot be written as 'txt'"),
        (("--norm", "asnorm", "--cohort", "{root}/train", "--top-k", "61"), "Lower top_k"),
        (("--center", "{root}/narrow.txt"), "--center has 2 dimensions, --embeddings 6"),
        (
            ("--norm", "snorm", "--cohort", "{root}/narrow.txt"),
            "--cohort has 2 dimensions, --embeddings 6",
        ),
        (
            ("--enrol-embeddings", "{root}/narrow.txt"),
            "--enrol-embeddings has 2 dimensions, --embeddings 6",
        ),
        (("--center", "{root}/absent.npz"), "absent.npz: no such file"),
        (
            ("--backend", "lda", "--train-embeddings", "{root}/narrow.txt"),
            "--train-utt2spk is missing",
        ),
        (
            ("--backend", "lda", "--train-embeddings", "{root}/train", "--lda-dim", "9"),
            "LDA to 9 dimensions is impossible",
        ),
        (
            (
                "--backend",
                "lda",
                "--train-embeddings",
                "{root}/narrow.txt",
                "--train-utt2spk",
                "{root}/few.utt2spk",
            ),
            "few.utt2spk names no speaker for 1 of the 2 embeddings",
        ),
        (("--utt2spk", "{root}/few.utt2spk"), "--utt2spk names no speaker for 'e"),
    ],
)
def test_options_that_do_not_go_together(data, command, options, message):
    (data.root / "narrow.txt").write_text("a  [ 1 2 ]\nb  [ 2 1 ]\n")
    (data.root / "few.utt2spk").write_text("a x\n")
    said = failure(
        score.main,
        *("--trials", data.root / "trials", "--embeddings", data.root / "eval"),
        *(option.format(root=data.root) for option in options),
    )
    assert message in said
    assert said.startswith("speaker.score: ")


def test_models_of_two_speakers_have_no_intervals(data, command):
    (data.root / "mixed").write_text("m e0-0 e1-0\n")
    (data.root / "mixed_trials").write_text("1 m e0-1\n0 m e1-1\n")
    said = failure(
        score.main,
        *("--trials", data.root / "mixed_trials", "--embeddings", data.root / "eval"),
        *("--enrolment", data.root / "mixed", "--utt2spk", data.root / "eval" / "utt2spk"),
    )
    assert "a model has utterances of e0 and e1" in said
