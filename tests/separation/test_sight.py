"""Lips and faces as cues: when a frame is known, what missing ones do, and films beside crops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, workdir
from common.data import records, speech, stored_faces
from configs.separation import audiovisual_quickstart
from separation import data, extraction, films, mixing, model, modes, sight, task

RATE_HZ = 16000
GRAIN = 640


def settings(**changes):
    config = audiovisual_quickstart.get_config("debug")
    config.update_from_flattened_dict(changes)
    return workdir.freeze(config)


@pytest.fixture(scope="module")
def net():
    found = model.make_model(settings())
    return found, jax.jit(lambda key: model.init(found, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def heard(net):
    """What a fresh network makes of a second of noise, and of what is seen beside it."""
    found, variables = net
    rng = np.random.default_rng(0)
    mixture = jnp.asarray(rng.normal(size=(1, RATE_HZ)), jnp.float32) * 0.1
    one, mask = jnp.full((1,), RATE_HZ), jnp.ones(1, bool)

    @jax.jit
    def apply(seen):
        zero = jnp.zeros_like(one)
        given = mixture, one, mixture, zero
        return found.apply(variables, *given, train=False, mask=mask, seen=seen)[0][0]

    return mixture, apply


def seen(frames: int = 25) -> sight.Seen:
    rng = np.random.default_rng(1)
    mouth = rng.integers(0, 255, (1, frames, *films.MOUTH), np.uint8)
    face = rng.integers(0, 255, (1, 2, *films.FACE), np.uint8)
    return sight.Seen(mouth, np.ones((1, frames), bool), face, np.ones((1, 2), bool))


def test_a_frame_is_known_from_its_middle_on():
    frames = jnp.arange(5.0)[None, :, None]
    motion = sight.Motion(frames, jnp.full((1,), -1.0))
    for hop in (80, 256, 640, 1000):
        ends = np.arange(1, 1 + 5000 // hop) * hop
        middles = GRAIN * np.arange(5) + GRAIN // 2
        expected = [int((middles <= end).sum()) - 1 for end in ends]
        # Where the film has ended nothing is seen: 5 frames end at sample 3200.
        expected = [k if end < middles[-1] + GRAIN else -1 for k, end in zip(expected, ends)]
        found = motion.at_hops(len(ends), hop, RATE_HZ)[0, :, 0]
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_there_is_not_seen(heard):
    _, apply = heard
    whole = seen()
    blind = apply(whole.without(True, True))
    assert np.abs(apply(whole) - blind).max() > 1e-4
    np.testing.assert_allclose(apply(None), blind, atol=1e-6)
    # Pictures that are not there may be anything.
    there = np.arange(25) % 3 > 0
    some = whole._replace(mouth_seen=there[None])
    other = whole.mouth.copy()
    other[:, ~there] = 7
    np.testing.assert_array_equal(apply(some), apply(some._replace(mouth=other)))
    assert np.abs(apply(some) - apply(whole)).max() > 1e-4
    # The face alone, and lips alone, are cues each.
    for one in (whole.without(True, False), whole.without(False, True)):
        assert np.abs(apply(one) - blind).max() > 1e-4
    picture = whole.without(True, False)
    first = picture._replace(face_seen=np.array([[True, False]]))
    assert np.abs(apply(first) - apply(picture)).max() > 1e-5


def test_no_sample_hangs_on_a_later_picture(heard, net):
    _, apply = heard
    whole = seen()
    changed = whole.mouth.copy()
    changed[:, 12] = 255 - changed[:, 12]
    apart = np.abs(apply(whole) - apply(whole._replace(mouth=changed)))
    known_from = 12 * GRAIN + GRAIN // 2
    latency = net[0].extractor.delay_samples + net[0].extractor.hop_size
    first = int(np.flatnonzero(apart > 1e-7)[0])
    assert known_from - latency <= first < known_from + GRAIN


def test_a_stream_without_a_film(heard, net):
    """Networks that see are streamed as others are."""
    mixture, apply = heard
    found, variables = net
    extractor = found.extractor
    cue = found.apply(variables, mixture, jnp.zeros(1, jnp.int32), method="cue")
    state = extractor.initial_state(1)
    state = found.apply(variables, state, cue, method="with_cue")
    missing = extractor.delay_samples + -(RATE_HZ + extractor.delay_samples) % extractor.hop_size
    whole = jnp.pad(mixture, ((0, 0), (0, missing)))
    parts = []
    for chunk in jnp.split(whole, [10 * extractor.hop_size], axis=1):
        state, audio = found.apply(variables, state, chunk, method="step")
        parts.append(audio)
    late = extractor.delay_samples
    streamed = jnp.concatenate(parts, axis=1)[0, late : late + RATE_HZ]
    np.testing.assert_allclose(streamed, apply(None), atol=1e-5)


def filmed(count: int = 8, seconds: float = 2.0) -> mixing.Mixtures:
    """Of recording k every sample tells its place, and every frame of its film too."""
    size = round(seconds * RATE_HZ)
    ramp = np.arange(size, dtype=np.float32) * 1e-6
    frames = -(-size // GRAIN)
    rows = []
    for k in range(count):
        film = np.zeros((frames, *films.MOUTH), np.uint8)
        film[:, 0, 0], film[:, 0, 1] = k + 1, np.arange(frames)
        face = np.full((3, *films.FACE), k + 1, np.uint8)
        about = {"id": f"r{k}", "speaker": str(k // 2), "sample_rate": RATE_HZ}
        rows.append(about | {"audio": 0.1 + ramp, "video": film, "face": face})
    source = records.RecordList("films", rows)
    index = records.Index(np.arange(count), np.full(count, size), RATE_HZ)
    labels = (np.arange(count) // 2).astype(np.int32)
    crops = speech.SpeechCrops(source, index, labels, RATE_HZ, grain=GRAIN)
    config = mixing.MixingConfig(overlap=(0.3, 0.8))
    sizes = {"num_samples": RATE_HZ, "num_enrolment": RATE_HZ // 2}
    return mixing.Mixtures(
        crops, np.arange(count), config, **sizes, films=films.Films(source, RATE_HZ)
    )


def test_frames_are_those_of_what_is_heard():
    found = dataclasses.replace(filmed(), paired=True)
    begins = set()
    for i in range(24):
        row = found.draw(i % 8, np.random.default_rng(i), {})
        for column, name, position in (
            (0, "", row["target_index"]),
            (1, "other_", row["interferer_index"][0]),
        ):
            audio, mouth = row["sources"][:, column], row[f"{name}mouth"]
            there = row[f"{name}mouth_seen"]
            assert len(mouth) == len(there) == 25
            assert (mouth[there, 0, 0] == position + 1).all()
            assert (row[f"{name}face"] == position + 1).all()
            said = np.flatnonzero(audio)
            first, last = said[0], said[-1]
            assert there.tolist() == [first <= GRAIN * k + GRAIN - 1 and GRAIN * k <= last
                                      for k in range(25)]  # fmt: skip
            # The scale from the ends of the ramp, from it the place of the first sample.
            scale = (audio[last] - audio[first]) / ((last - first) * 1e-6)
            place = (audio[first] / scale - 0.1) / 1e-6
            assert place == pytest.approx(GRAIN * int(mouth[first // GRAIN, 0, 1]), abs=40)
            begins.add((column, first))
    assert len({first for column, first in begins if column}) > 4


def test_the_strange_mouth_is_of_nobody_who_is_heard():
    found = filmed()
    for i in range(8):
        row = found.draw(i, None, {})
        here = {row["target_index"] // 2, row["interferer_index"][0] // 2}
        strange = {int(k - 1) // 2 for k in row["strange_mouth"][:, 0, 0]}
        assert len(strange) == 1
        assert not strange & here
        assert row["strange_mouth_seen"].all()
        again = found.draw(i, None, {})
        assert all(np.array_equal(row[name], again[name]) for name in row)


def test_a_film_may_be_short_or_missing_and_of_one_size():
    rows = [
        {"id": "none", "audio": np.zeros(10), "sample_rate": RATE_HZ},
        {"id": "short", "video": np.ones((3, *films.MOUTH), np.uint8)},
        {"id": "small", "video": np.ones((3, 88, 88), np.uint8), "face": np.ones((1, 64, 64, 3))},
    ]
    found = films.Films(records.RecordList("some", rows), RATE_HZ, pictures=2)
    for position, count in ((0, 0), (1, 2)):
        mouth, there = found.mouth(position, GRAIN, 4 * GRAIN - 5)
        assert there.tolist() == [k < count for k in range(4)]
        assert mouth[there].all()
        assert not mouth[~there].any()
    assert not found.face(0, None)[1].any()
    # What the network does not look at is not read: "small" would be refused.
    blind = dataclasses.replace(found, with_lips=False, with_faces=False)
    assert not blind.mouth(2, 0, 10)[1].any()
    assert not blind.face(2, None)[1].any()
    with pytest.raises(records.DataError, match=r"small: its video has pictures of 88x88 uint8"):
        found.mouth(2, 0, 10)
    with pytest.raises(records.DataError, match=r"small: its face has pictures of 64x64x3 float64"):
        found.face(2, None)


def test_of_a_film_the_portraits_that_are_shown_alone_are_decoded(monkeypatch):
    """And the same ones as of pictures that are there."""
    decoded = []

    def spread(path, count, parts=None):
        parts = range(count) if parts is None else parts
        decoded.extend(parts)
        return np.stack([np.full(films.FACE, 10 + part, np.uint8) for part in parts])

    monkeypatch.setattr(stored_faces, "spread_frames", spread)
    rows = [{"id": "a", "face": stored_faces.Portraits("a.mp4", 5)}]
    drawn = [{"id": "a", "face": np.arange(10, 15, dtype=np.uint8)[:, None, None, None]
              * np.ones(films.FACE, np.uint8)}]  # fmt: skip
    for pictures, seed in ((1, None), (1, 3), (2, 4), (9, 5)):
        decoded.clear()
        shown = []
        for some in (rows, drawn):
            source = films.Films(records.RecordList("some", some), RATE_HZ, pictures)
            shown.append(source.face(0, None if seed is None else np.random.default_rng(seed)))
        order = np.arange(5) if seed is None else np.random.default_rng(seed).permutation(5)
        assert decoded == order[:pictures].tolist()
        for one, other in zip(*shown):
            np.testing.assert_array_equal(one, other)
        assert shown[0][0][shown[0][1]][:, 0, 0, 0].tolist() == (10 + order[:pictures]).tolist()


def test_settings_that_do_not_go_together(tmp_path):
    for changes, message in (
        ({"model.kind": "quality"}, r"sight\.lips=True goes with config\.model\.kind=causal"),
        ({"modes": ("given", "noisy", "none")}, r"config\.modes=.*: of given, lips, face, voice"),
        ({"sight.dropout": 1.0}, r"config\.sight\.dropout=1\.0"),
    ):
        with pytest.raises(errors.UserError, match=message):
            task.make_task(settings(**changes), tmp_path)
    faster = dataclasses.replace
    with pytest.raises(errors.UserError, match=r"config\.augment\.speeds"):
        faster(filmed(), speeds=(1.0, 1.1))


def test_modes_of_the_cues_that_there_are():
    assert list(modes.table(settings())) == list(modes.SEEN)
    of_faces = modes.table(settings(**{"sight.lips": False}))
    assert list(of_faces) == ["given", "face", "voice", "none"]
    alone = settings(**{"model.kind": "visualvoice", "model.visualvoice.lip": False,
                        "model.visualvoice.face": False})  # fmt: skip
    assert {n: m.words for n, m in modes.table(alone).items()} == {
        "given": "without any cue, the better of both voices"
    }
    assert list(modes.table(settings(modes=("given", "none", "lips")))) == ["given", "lips", "none"]


def test_both_voices_have_their_own_pictures(tmp_path):
    """`of_both` gives the interferer's row the interferer's mouth and face."""
    found = dataclasses.replace(filmed(), paired=True)
    row = found.draw(0, np.random.default_rng(0), {})
    batch = {name: np.asarray(x)[None] for name, x in row.items() if name != "id"}
    size = {"other_enrolment_lengths": np.array([RATE_HZ // 2]), "row": np.array([3])}
    size["enrolment_lengths"] = size["other_enrolment_lengths"]
    both = extraction.of_both(batch | size)
    for name in sight.Seen._fields:
        np.testing.assert_array_equal(both[name][0], row[name])
        np.testing.assert_array_equal(both[name][1], row[f"other_{name}"])
    assert data.FILMED[:4] == ("mouth", "mouth_seen", "other_mouth", "other_mouth_seen")


def test_the_quickstart_has_at_most_five_million_parameters_with_what_sees():
    config = workdir.freeze(audiovisual_quickstart.get_config())
    net = model.make_model(config)
    params = jax.eval_shape(lambda: model.init(net, jax.random.key(0)))["params"]
    assert 3.5e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) <= 5e6
