"""Fixed lists of mixtures: read as published, mixed by their rules, with an enrolment for each."""

import math
import pathlib

import numpy as np
import pytest

from common import errors, workdir
from common.audio import io
from configs.separation import quickstart
from separation import fixed, lists

RATE_HZ = 8000


def write(path: pathlib.Path, seconds: float, seed: int, rate: int = RATE_HZ) -> np.ndarray:
    rng = np.random.default_rng(seed)
    audio = 0.1 * rng.normal(size=round(seconds * rate)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_wav(path, audio, rate, subtype="FLOAT")
    return audio


def write_table(path: pathlib.Path, *lines: str, tab: bool = True) -> pathlib.Path:
    text = "\n".join(line.replace(" ", "\t" if tab else ",") for line in lines)
    path.write_text(text + "\n")
    return path


def opened(path: pathlib.Path, **changes) -> fixed.ListSplit:
    config = quickstart.get_config("debug")
    config.data.sample_rate_hz = RATE_HZ
    config.data.update(changes)
    return fixed.open_list("dev", path, workdir.freeze(config), path.parent)


HEADER = "mix source1 source2 speaker1 speaker2 genders s1_over_s2_db noise s1_over_noise_db"


def rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


def test_a_list_is_mixed_by_its_rule_and_each_source_is_the_target_once(tmp_path):
    found = {
        name: write(tmp_path / "wav" / f"{name}.wav", seconds, i)
        for i, (name, seconds) in enumerate(
            (("a0", 3.0), ("a1", 2.0), ("b0", 2.5), ("b1", 2.0), ("noise", 0.7))
        )
    }
    path = tmp_path / "lists" / "x" / "dev.tsv"
    path.parent.mkdir(parents=True)
    row = "m0 wav/a0.wav wav/b0.wav a b fm 4.0 wav/noise.wav 6.0"
    write_table(path, HEADER, row, "m1 wav/a1.wav wav/b1.wav a b fm -3.0 - -")
    part = opened(path)
    assert part.fixed.root == tmp_path  # found above the list
    assert (len(part), part.note) == (4, "")
    assert part.lengths.tolist() == [20000, 20000, 16000, 16000]
    first, second = part.draw(0, None, {}), part.draw(1, None, {})
    # By the README of the data: scale, cut to the shorter, add.
    one = found["a0"] / rms(found["a0"]) * 0.05
    two = found["b0"] / rms(found["b0"]) * 0.05 * 10 ** (-4 / 20)
    noise = np.tile(found["noise"], 4)[:20000]
    noise = noise / rms(noise) * 0.05 * 10 ** (-6 / 20)
    expected = np.stack([one[:20000], two, noise], 1)
    np.testing.assert_allclose(first["sources"], expected, rtol=1e-5)
    np.testing.assert_allclose(second["sources"], expected[:, [1, 0, 2]], rtol=1e-5)
    np.testing.assert_equal(first["enrolment"], found["a1"][: part.num_enrolment])
    np.testing.assert_equal(second["enrolment"], found["b1"][: part.num_enrolment])
    for row, names in ((first, ("a0", "a1", "b0")), (second, ("b0", "b1", "a0"))):
        keys = (row["target_index"], row["enrolment_index"], row["interferer_index"][0])
        assert [part.written_at(int(k))["id"] for k in keys] == [f"wav/{n}.wav" for n in names]
    ratio = 10 * math.log10(rms(one[:20000]) ** 2 / rms(two + noise) ** 2)
    assert first["snr_db"] == pytest.approx(ratio, abs=1e-3)
    assert part.genders == ("fm",) * 4
    assert part.draw(2, None, {})["sources"].shape == (16000, 3)  # as the others, without noise


def test_a_voice_without_another_recording_is_known_by_the_end_of_the_same(tmp_path):
    """The mixture stays whole where there is enough after it, and else is cut to what is before."""
    long, short = write(tmp_path / "a.wav", 9.0, 1), write(tmp_path / "b.wav", 5.0, 2)
    part = opened(write_table(tmp_path / "dev.tsv", HEADER, "m a.wav b.wav a b - 0 - -"))
    assert part.lengths.tolist() == [40000, 24000]
    whole, cut = part.draw(0, None, {}), part.draw(1, None, {})
    np.testing.assert_equal(whole["enrolment"], long[40000:][: part.num_enrolment])
    np.testing.assert_equal(cut["enrolment"], short[24000:][: part.num_enrolment])
    # Scaled as published, by the whole recording.
    np.testing.assert_allclose(cut["sources"][:, 0], 0.05 / rms(short) * short[:24000], rtol=1e-5)
    np.testing.assert_allclose(cut["sources"][:, 1], whole["sources"][:24000, 0])
    assert part.note.startswith("2 of 2 targets have no other recording in the list")
    assert "1 mixtures are cut" in part.note
    assert "(the list is 80 % as long)" in part.note


def test_librimix_is_taken_as_its_files_are(tmp_path):
    """Both sources are targets; what the mixture holds beside them is noise."""
    names = ("84-1-0000_77-2-0001", "84-1-0003_77-2-0002", "84-1-0000_77-2-0002")
    lines, found = ["mixture_ID,mixture_path,source_1_path,source_2_path,noise_path,length"], []
    for k, name in enumerate(names):
        sources = [write(tmp_path / f"s{s}" / f"{name}.wav", 1.5, 10 * k + s) for s in (1, 2)]
        noise = 0.01 * np.random.default_rng(k).normal(size=12000).astype(np.float32)
        io.write_wav(tmp_path / "mix" / f"{name}.wav", sum(sources) + noise, RATE_HZ)
        files = (f"{folder}/{name}.wav" for folder in ("mix", "s1", "s2"))
        lines.append(",".join([name, *files, "", "12000"]))
        found.append((*sources, noise))
    path = tmp_path / "mix.csv"
    path.write_text("\n".join(lines) + "\n")
    part = opened(path)
    assert (len(part), part.note) == (6, "")
    row = part.draw(1, None, {})
    expected = np.stack([found[0][1], found[0][0], found[0][2]], 1)
    np.testing.assert_allclose(row["sources"], expected, atol=1 / 32768)  # 16 bits
    written = part.written_at(int(row["enrolment_index"]))
    assert written["speaker"] == "77"
    assert "_77-2-0002" in written["id"]
    # Of the third mixture's first voice: not the same utterance in another file.
    assert "84-1-0003_" in part.written_at(int(part.draw(4, None, {})["enrolment_index"]))["id"]
    assert opened(path).draw(1, None, {})["enrolment_index"] == row["enrolment_index"]


def test_sources_with_an_enrolment_are_the_targets_and_one_without_a_path_is_absent(tmp_path):
    for i, name in enumerate(("m", "x", "e", "f")):
        write(tmp_path / f"{name}.wav", 1.0, i)
    head = "mixture_ID mixture_path source_1_path source_2_path speaker_1 speaker_2"
    table = (
        f"{head} enrolment_1_path",
        "m1 m.wav m.wav x.wav a b e.wav",
        "m2 x.wav  x.wav c b f.wav",
        "m3   x.wav c b f.wav",  # nor is there a file of the mixture
    )
    part = opened(write_table(tmp_path / "list.csv", *table, tab=False))
    present, *without = (part.draw(i, None, {}) for i in range(3))
    assert len(part) == 3
    assert present["present"]
    for absent in without:
        assert not absent["present"]
        assert not absent["sources"][:, 0].any()
        assert absent["sources"][:, 1].any()
        assert part.written_at(int(absent["target_index"]))["speaker"] == "c"


def test_googles_tuples_are_looked_up_in_a_librispeech_tree(tmp_path):
    """The interference is cut, or filled up, to the clean utterance, and added as it is."""
    tree = tmp_path / "LibriSpeech"
    found = {}
    for i, (subset, name, seconds) in enumerate(
        (
            ("dev-clean", "84-1-0000", 2.0),
            ("dev-clean", "84-1-0001", 1.5),
            ("dev-other", "77-2-0000", 1.2),
            ("dev-other", "77-2-0001", 1.3),
        )
    ):
        speaker, chapter, _ = name.split("-")
        found[name] = write(tree / subset / speaker / chapter / f"{name}.flac", seconds, i)
    head = "clean_utterance embedding_utterance interference_utterance"
    rows = ("84-1-0000 84-1-0001 77-2-0000", "77-2-0001 77-2-0000 84-1-0001")
    path = write_table(tmp_path / "dev_tuples.csv", head, *rows, tab=False)
    (tree / "SPEAKERS.TXT").write_text("; ID\n84 | F | dev-clean | 8.0 | A\n77 | M | x | 8.0 | B\n")
    part = opened(path, audio_root=str(tree))
    assert part.genders == ("fm", "fm")
    assert part.lengths.tolist() == [16000, 10400]
    row = part.draw(0, None, {})
    np.testing.assert_equal(row["sources"][:, 0], found["84-1-0000"])
    np.testing.assert_equal(row["sources"][:9600, 1], found["77-2-0000"])
    assert not row["sources"][9600:, 1].any()
    np.testing.assert_equal(row["enrolment"], found["84-1-0001"][: part.num_enrolment])
    np.testing.assert_equal(part.draw(1, None, {})["sources"][:, 1], found["84-1-0001"][:10400])
    above = opened(path, kind="librispeech", root=str(tmp_path))
    assert above.lengths.tolist() == [16000, 10400]
    with pytest.raises(errors.UserError, match=r"line 2: its utterances.*config\.data\.audio_root"):
        opened(path)


@pytest.mark.parametrize(
    ("place", "corpus"),
    [
        ("wav48/{}/{}.wav", ""),
        ("wav48_silence_trimmed/{}/{}_mic1.flac", ""),
        ("VCTK-Corpus/wav48/{}/{}.wav", "VCTK-Corpus"),
        ("VCTK-Corpus-0.92/wav48_silence_trimmed/{}/{}_mic2.flac", "VCTK-Corpus-0.92"),
        ("{}/{}.wav", ""),  # the folder of the speakers itself
    ],
)
def test_googles_tuples_are_looked_up_in_a_vctk_tree(tmp_path, place, corpus):
    """The rows are the first of the published test list; 48 kHz, as published."""
    names = ("p246_001", "p246_354", "p273_070", "s5_001")
    tree, found = tmp_path / "tree", {}
    for i, name in enumerate(names):
        path = tree / place.format(name.partition("_")[0], name)
        found[name] = write(path, 1.0 + 0.2 * i, i, rate=48000)
    says = (
        "ID  AGE  GENDER  ACCENTS\n246  22  M  Scottish\n273  23  M  English\ns5  22  F  British\n"
    )
    if "0.92" in corpus:
        says = says.replace("246", "p246").replace("273", "p273")
    (tree / corpus / "speaker-info.txt").write_text(says)
    head = "clean_utterance embedding_utterance interference_utterance"
    rows = ("p246_001 p246_354 p273_070", "s5_001 p246_354 p246_001")
    path = write_table(tmp_path / "test_tuples.csv", head, *rows, tab=False)
    part = opened(path, audio_root=str(tree), sample_rate_hz=48000)
    assert part.genders == ("mm", "fm")
    assert part.lengths.tolist() == [48000, 76800]
    assert [e.voices[0].speaker for e in part.fixed.entries] == ["p246", "s5"]
    row = part.draw(0, None, {})
    np.testing.assert_allclose(row["sources"][:, 0], found["p246_001"], atol=1e-7)
    np.testing.assert_allclose(row["sources"][:, 1], found["p273_070"][:48000], atol=1e-7)
    np.testing.assert_allclose(row["enrolment"], found["p246_354"][: part.num_enrolment], atol=1e-7)


def test_of_two_microphones_of_vctk_the_first_is_taken_and_what_is_missing_is_said(tmp_path):
    folder = tmp_path / "wav48_silence_trimmed" / "p246"
    first = write(folder / "p246_001_mic1.flac", 1.0, 0)
    write(folder / "p246_001_mic2.flac", 1.0, 1)
    write(folder / "p246_002_mic2.flac", 1.0, 2)
    head = "clean_utterance embedding_utterance interference_utterance"
    path = write_table(tmp_path / "a.csv", head, "p246_001 p246_002 p246_002", tab=False)
    row = opened(path, audio_root=str(tmp_path)).draw(0, None, {})
    np.testing.assert_allclose(row["sources"][:, 0], first, atol=1e-7)
    for names, message in (
        ("p246_001 p246_002 p247_001", r"line 2: .*wav48/p247/p247_001\.wav \(1 of 3 files"),
        ("p246_001 p246_002 P247", r"line 2: 'P247' is no utterance of LibriSpeech .* or VCTK"),
    ):
        write_table(path, head, names, tab=False)
        with pytest.raises(errors.UserError, match=message):
            opened(path, audio_root=str(tmp_path))


def test_what_is_wrong_with_a_list_is_said_once_with_list_line_and_file(tmp_path):
    write(tmp_path / "a.wav", 3.0, 1)
    write(tmp_path / "b.wav", 3.0, 2)
    write(tmp_path / "short.wav", 0.05, 2)
    write(tmp_path / "fast.wav", 3.0, 3, rate=16000)
    io.write_wav(tmp_path / "silent.wav", np.zeros(24000, np.float32), RATE_HZ)
    (tmp_path / "page.wav").write_text("<html>")
    good, mixed = (
        "m a.wav b.wav a b fm 1 - -",
        "mixture_ID mixture_path source_1_path source_2_path",
    )
    for rows, message in (
        (
            (HEADER, good, "m a.wav c.wav a c fm 1 - -"),
            r"line 3: there is no file .*/c\.wav \(1 of 3",
        ),
        ((HEADER, good, "m a.wav silent.wav a c fm 1 - -"), r"line 3: .*/silent\.wav.*silent"),
        ((HEADER, good, "m a.wav page.wav a c fm 1 - -"), r"line 3: .*/page\.wav.*unreadable"),
        (
            (HEADER, "m a.wav short.wav a c fm 1 - -"),
            r"line 2: its mixture has 0\.050 s, less than",
        ),
        ((HEADER, "m a.wav b.wav a b fm x - -"), r"line 2: s1_over_s2_db is 'x'"),
        ((HEADER, "m a.wav b.wav a b fm nan - -"), r"line 2: s1_over_s2_db is 'nan'"),
        ((HEADER, "m a.wav  a b fm 1 - -"), r"line 2: source2 is empty"),
        ((f"{mixed} speaker_1", "m    a"), r"line 2: it names neither a mixture nor"),
        ((HEADER, "m a.wav"), r"line 2: 2 fields"),
        ((HEADER,), "holds no mixtures"),
        (("one two", "1 2"), "the columns one, two are of no form"),
        ((mixed, "m a.wav a.wav b.wav"), r"line 2: neither 'a' nor 'm' says who source 1 is"),
        (
            (mixed, "1-1-1_2-2-2 a.wav a.wav fast.wav"),
            r"line 2: .*fast\.wav is at 16000 Hz, .*at 8000 Hz",
        ),
    ):
        path = write_table(tmp_path / "dev.tsv", *rows)
        with pytest.raises(errors.UserError, match=message) as said:
            opened(path)
        assert str(path) in str(said.value)
    with pytest.raises(errors.UserError, match="There is no list"):
        opened(tmp_path / "other.tsv")
    # Other rates are no fault where the list itself is mixed here.
    rates = write_table(tmp_path / "dev.tsv", HEADER, "m a.wav fast.wav a b fm 1 - -")
    assert opened(rates).draw(0, None, {})["sources"].shape == (14400, 2)


def test_lists_have_names():
    found = lists.named(("dev=/x/one.tsv", "/y/dev_noisy.tsv", "/z/a=b/c.csv"))
    assert {name: str(path) for name, path in found.items()} == {
        "dev": "/x/one.tsv",
        "dev_noisy": "/y/dev_noisy.tsv",
        "c": "/z/a=b/c.csv",
    }
    with pytest.raises(errors.UserError, match="two lists 'dev'"):
        lists.named(("/x/dev.tsv", "/y/dev.tsv"))


def test_the_published_lists_have_the_published_ratio(speech_data):
    """Mean input SI-SDR of `dev`: 0.02 dB, by the README of the data, over both sources, whole."""
    path = speech_data / "lists" / "separation" / "dev.tsv"
    part = opened(path, sample_rate_hz=16000)
    assert len(part) == 300  # 150 mixtures
    assert "300 of 300 targets" in part.note
    part.__dict__["_cuts"] = part._published  # nothing is cut
    ratios = []
    for i in range(0, 300, 2):
        sources = np.float64(part.draw(i, None, {})["sources"])
        mixture = sources.sum(1)
        for target in sources.T:
            wanted = (mixture @ target) / (target @ target) * target
            ratios.append(10 * np.log10(np.sum(wanted**2) / np.sum((mixture - wanted) ** 2)))
    assert np.mean(ratios) == pytest.approx(0.02, abs=0.005)
