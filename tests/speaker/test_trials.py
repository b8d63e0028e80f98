"""Trial and enrolment lists: both forms, what is refused and what the message says."""

import gzip
import logging

import numpy as np
import pytest

from common import errors
from speaker import trials


def write(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


VOXCELEB = "1 a b\n0 a c\n\n1 d b\n"
KALDI = "a b target\na\tc  nontarget\r\n\nd b target\n"


@pytest.mark.parametrize("text", [VOXCELEB, KALDI, "\ufeff" + VOXCELEB])
def test_both_forms_read_alike(tmp_path, text):
    read = trials.read_trials(write(tmp_path, text))
    assert read.enrol_ids == ("a", "d")
    assert read.test_ids == ("b", "c")
    assert read.enrol_index.tolist() == [0, 0, 1]
    assert read.test_index.tolist() == [0, 1, 0]
    assert read.is_target.tolist() == [True, False, True]
    assert read.lines.tolist() == [1, 2, 4]
    assert len(read) == 3


def test_a_label_as_a_name_is_settled_by_other_lines(tmp_path):
    # The first line reads both ways.
    read = trials.read_trials(write(tmp_path, "1 a target\n1 a b\n"))
    assert read.test_ids == ("target", "b")
    read = trials.read_trials(write(tmp_path, "1 a target\nb a nontarget\n"))
    assert read.enrol_ids == ("1", "b")
    with pytest.raises(trials.TrialError, match="named like a label"):
        trials.read_trials(write(tmp_path, "1 a target\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\na b target\n", r"list\.txt:2: `a b target` has another form .*one form"),
        ("a b target\n0 a b\n", r"list\.txt:2: `0 a b` has another form"),
        ("1 a b\n2 a b\n", r":2: `2 a b` is no trial; expected `1 enrol test`"),
        ("1 a b\n1 a\n", r":2: `1 a` is no trial"),
        ("a b\n", r":1: `a b` is no trial; expected `1 enrol test` .* or `enrol test target`"),
        ("a b TARGET\n", r":1: `a b TARGET` is no trial"),
        (" \n", "the list is empty"),
        ("1 a b\n1 a c\n\n0 a b\n", r":4: `a b` has the other label on line 1"),
    ],
)
def test_bad_lines_are_named_in_one_line(tmp_path, text, message):
    with pytest.raises(trials.TrialError, match=message) as raised:
        trials.read_trials(write(tmp_path, text))
    assert isinstance(raised.value, errors.UserError)
    assert "\n" not in str(raised.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(trials.TrialError, match="No such file"):
        trials.read_trials(tmp_path / "absent.txt")
    with pytest.raises(trials.TrialError, match="cannot be read"):
        trials.read_trials(write(tmp_path, VOXCELEB, "not.gz"))
    (tmp_path / "binary").write_bytes(b"1 a \xff\xfe\n")
    with pytest.raises(trials.TrialError, match="UTF-8"):
        trials.read_trials(tmp_path / "binary")


def test_rows_of_trials(tmp_path, caplog):
    read = trials.read_trials(write(tmp_path, VOXCELEB))
    found = trials.locate(read, ["d", "a"], ["c", "x", "b"])
    assert found.enrol_index.tolist() == [1, 1, 0]
    assert found.test_index.tolist() == [2, 0, 2]
    assert found.kept.tolist() == [0, 1, 2]
    assert not caplog.messages
    with pytest.raises(trials.UnknownIdsError) as raised:
        trials.locate(read, ["a"], ["b"])
    assert "2 ids of the trial list have no embedding (d, c), used in 2 of 3" in str(raised.value)
    assert "list.txt:2:" in str(raised.value)
    assert caplog.messages == ["unknown: d", "unknown: c"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = trials.locate(read, ["a"], ["b"], allow_unknown=True)
    assert "left out" in caplog.text
    assert (found.kept.tolist(), found.is_target.tolist()) == ([0], [True])
    assert caplog.messages[:2] == ["unknown: d", "unknown: c"]
    with pytest.raises(trials.UnknownIdsError, match="used in 3 of 3 trials"):
        trials.locate(read, ["z"], ["b"], allow_unknown=True)
    with pytest.raises(trials.TrialError, match="'a' names more than one"):
        trials.locate(read, ["a", "a", "d"], ["b", "c"])


def test_enrolment_means(tmp_path, caplog):
    enrolment = trials.read_enrolment(write(tmp_path, "m2 u1 u3\n\nm1 u2\n"))
    assert enrolment.models == {"m2": ("u1", "u3"), "m1": ("u2",)}
    embeddings = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    names, means, counts = trials.enrol(enrolment, ["u0", "u1", "u2", "u3"], embeddings)
    assert names == ("m2", "m1")
    np.testing.assert_allclose(means[0], (embeddings[1] + embeddings[3]) / 2, rtol=1e-6)
    np.testing.assert_allclose(means[1], embeddings[2], rtol=1e-6)
    assert counts.tolist() == [2, 1]
    with pytest.raises(trials.UnknownIdsError, match=r"list\.txt:1: 2 enrolment .*\(u3, u2\)"):
        trials.enrol(enrolment, ["u0", "u1"], embeddings[:2])
    with caplog.at_level(logging.WARNING):
        names, means, counts = trials.enrol(
            enrolment, ["u0", "u1"], embeddings[:2], allow_unknown=True
        )
    assert (names, counts.tolist()) == (("m2",), [1])
    assert "leaves 1 of 2 models" in caplog.text
    with pytest.raises(trials.UnknownIdsError, match="leaves 0 of 2"):
        trials.enrol(enrolment, ["u0"], embeddings[:1], allow_unknown=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m u\nn\n", ":2: model 'n' has no utterances"),
        ("m u\nm v\n", ":2: model 'm' was listed on line 1"),
        ("m u v u\n", ":1: model 'm' lists 'u' more than once"),
        ("", "empty"),
    ],
)
def test_bad_enrolment_lists_are_refused(tmp_path, text, message):
    with pytest.raises(trials.TrialError, match=message):
        trials.read_enrolment(write(tmp_path, text))


def test_published_lists(speech_data):
    original = trials.read_trials(speech_data / "reference/trials/vox1_O_original.txt.gz")
    assert (len(original), original.is_target.sum()) == (37720, 18860)
    # The labels follow from the speaker folders.
    speakers = [
        np.array([n.split("/")[0] for n in ids]) for ids in (original.enrol_ids, original.test_ids)
    ]
    same = speakers[0][original.enrol_index] == speakers[1][original.test_index]
    np.testing.assert_array_equal(same, original.is_target)
    for path in sorted((speech_data / "lists" / "verification").glob("*.txt")):
        with path.open() as file:
            expected = [line.split()[0] == "1" for line in file]
        read = trials.read_trials(path)
        np.testing.assert_array_equal(read.is_target, expected)
        for name in (read.enrol_ids[0], read.test_ids[-1]):
            assert (speech_data / name).exists()


@pytest.mark.slow
def test_millions_of_lines(tmp_path):
    rng = np.random.default_rng(0)
    n = 1_000_000
    enrol, test = rng.integers(1000, size=n), rng.integers(5000, size=n)
    path = tmp_path / "trials.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(
            f"m{e} spk{t % 1000}/u{t} {'target' if e == t % 1000 else 'nontarget'}\n"
            for e, t in zip(enrol, test)
        )
    read = trials.read_trials(path)
    found = trials.locate(
        read, [f"m{e}" for e in range(1000)], [f"spk{t % 1000}/u{t}" for t in range(5000)]
    )
    np.testing.assert_array_equal(found.enrol_index, enrol)
    np.testing.assert_array_equal(found.test_index, test)
    np.testing.assert_array_equal(found.is_target, enrol == test % 1000)
