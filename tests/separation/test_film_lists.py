"""Lists of films: mixed by their rule with what is seen beside it, for networks that see alone."""

import pathlib

import numpy as np
import pytest

from common import errors, workdir
from common.audio import io
from common.data import splits, stored_faces
from configs.separation import audiovisual_quickstart, quickstart, visualvoice
from separation import data, fixed
from tests import commands

RATE_HZ = 16_000
HEADER = "mix\tvideo1\tvideo2\ts1_over_s2_db"


@pytest.fixture
def prepared(tmp_path) -> pathlib.Path:
    """A folder as prepare_video leaves it: two films of ann, two of bob, one of eve, a pair."""
    out = tmp_path / "prepared"
    lines = ["id\taudio\toffset\tduration\tmouth\tface\tportraits\tspeaker\tgender\tsplit\tfilm"]
    names = ("ann0", "ann1", "bob0", "bob1", "eve0", "pair~1", "pair~2")
    for folder in ("audio", "mouths", "faces"):
        (out / folder).mkdir(parents=True)
    for k, name in enumerate(names):
        audio = 0.1 * np.random.default_rng(k).normal(size=RATE_HZ * 2).astype(np.float32)
        io.write_wav(out / "audio" / f"{name}.wav", audio, RATE_HZ, subtype="FLOAT")
        # The recording starts 0.4 s into its sound: ten pictures.
        with stored_faces.MouthWriter(out / "mouths" / f"{name}.h5") as mouths:
            for frame in range(40):
                mouths.add(np.full((96, 96), 10 * k + frame % 10, np.uint8))
        portraits = np.full((2, 224, 224, 3), k, np.uint8)
        stored_faces.write_portraits(out / "faces" / f"{name}.png", portraits)
        speaker, film = name[:3], f"/somewhere/av/{name[:3]}/{name.partition('~')[0]}.mpg"
        gender = {"ann": "f", "bob": "m"}.get(speaker, "")
        files = (f"audio/{name}.wav", "0.4", "1.6", f"mouths/{name}.h5", f"faces/{name}.png", "2")
        lines.append("\t".join((name, *files, speaker, gender, "any", film)))
    (out / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return out


def opened(path: pathlib.Path, config=None, **changes) -> fixed.ListSplit:
    config = config or audiovisual_quickstart.get_config("debug")
    config.data.update(changes)
    return fixed.open_list("dev", path, workdir.freeze(config), path.parent)


def write(path: pathlib.Path, *rows: str, header: str = HEADER) -> pathlib.Path:
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_a_mixture_comes_with_the_films_of_its_voices(tmp_path, prepared):
    rows = ("m0\tav/ann/ann0.mpg\tav/bob/bob0.mpg\t4.0", "m1\tann1.mpg\tbob1.mpg\t0")
    path = write(tmp_path / "dev.tsv", *rows)
    part = opened(path, audio_root=str(prepared))
    assert len(part) == 4
    assert part.note == ""
    assert part.genders == ("fm",) * 4
    assert part.lengths.tolist() == [RATE_HZ * 16 // 10] * 4
    first, second = part.draw(0, None, {}), part.draw(1, None, {})
    for row, numbers in ((first, (0, 2)), (second, (2, 0))):
        for whose, number in zip(("", "other_"), numbers):
            mouth, there = row[f"{whose}mouth"], row[f"{whose}mouth_seen"]
            assert mouth.shape == (40, 96, 96)
            assert there.all()
            np.testing.assert_array_equal(mouth[:, 0, 0], 10 * number + np.arange(40) % 10)
            assert (row[f"{whose}face"] == number).all()
            assert row[f"{whose}face_seen"].all()
    whole = np.random.default_rng(0).normal(size=RATE_HZ * 2).astype(np.float32)[6400:]
    target = first["sources"][:, 0]
    np.testing.assert_allclose(target, whole * 0.05 / np.sqrt(np.mean(whole**2)), rtol=1e-4)
    assert first["snr_db"] == pytest.approx(4.0, abs=1e-3)
    assert second["snr_db"] == pytest.approx(-4.0, abs=1e-3)
    # The enrolment is of the same person's other film; nobody strange is in the list.
    enrolled = [part.written_at(int(row["enrolment_index"]))["id"] for row in (first, second)]
    assert enrolled == ["ann1", "bob1"]
    assert first["strange_mouth"][0, 0, 0] in (20, 30)  # bob
    write(path, "m0\tann0.mpg\tbob0.mpg\t4.0", "m1\tann1.mpg\teve0.mpg\t0")
    strange = opened(path, audio_root=str(prepared)).draw(0, None, {})["strange_mouth"]
    assert strange[0, 0, 0] == 40


def test_who_is_known_by_sight_alone_needs_no_enrolment(tmp_path, prepared):
    """One film of each: where an enrolment has no use the mixtures are not cut for one."""
    path = write(tmp_path / "dev.tsv", "m0\tann0.mpg\teve0.mpg\t0")
    config = visualvoice.get_config("debug")
    part = opened(path, config, kind="films", root=str(prepared))
    assert part.lengths.tolist() == [25_600, 25_600]
    assert part.note == ""
    assert part.genders == ("", "")  # eve's is not known
    heard = opened(path, audio_root=str(prepared))
    assert "2 of 2 targets have no other recording" in heard.note
    assert heard.draw(0, None, {})["mouth"].shape[0] == -(-int(heard.lengths[0]) // 640)


def test_who_hears_alone_is_measured_on_the_same_mixtures(tmp_path, prepared):
    """VisualVoice without lips and faces as those with them; who knows a voice by a recording has
    the rest of the film for one."""
    path = write(tmp_path / "dev.tsv", "m0\tann0.mpg\tbob0.mpg\t3", "m1\tann1.mpg\tbob1.mpg\t0")
    root = {"audio_root": str(prepared)}
    seeing = opened(path, visualvoice.get_config("debug"), **root)
    config = visualvoice.get_config("debug")
    config.model.visualvoice.update({"lip": False, "face": False})
    heard = opened(path, config, **root)
    assert heard.lengths.tolist() == seeing.lengths.tolist()
    for i in range(len(heard)):
        row, other = heard.draw(i, None, {}), seeing.draw(i, None, {})
        np.testing.assert_array_equal(row["sources"], other["sources"])
        assert "mouth" not in row
    by_voice = opened(path, quickstart.get_config("debug"), **root)
    assert "mouth" not in by_voice.draw(0, None, {})


def test_who_is_not_alone_in_view_is_no_target(tmp_path, prepared, caplog):
    """The sound of a film of two people is of both, and nobody knows whose."""
    manifest = prepared / "manifest.tsv"
    config = visualvoice.get_config("debug").data
    config.update({"kind": "films", "root": str(prepared), "split_column": "split"})
    ids = [f"{name}{k}" for name in ("ann", "bob") for k in (0, 1)] + ["eve0"]
    pair = ["pair~1", "pair~2"]
    assert [row["id"] for row in splits.open_source(config, ["any"])] == ids + pair
    assert not caplog.records  # a manifest that does not say it
    header, *rows = manifest.read_text().splitlines()
    rows = [f"{row}\t{int(row.startswith('pair'))}" for row in rows]
    manifest.write_text("\n".join([f"{header}\tothers", *rows]) + "\n")
    source = splits.open_source(config, ["any"])
    assert [row["id"] for row in source] == ids
    assert "others" not in source[0]
    assert "2 of 7 people are in view together with others" in caplog.text
    assert "They are left out (config.data.several_in_view=True takes them)" in caplog.text
    config.several_in_view = True
    caplog.clear()
    assert [row["id"] for row in splits.open_source(config, ["any"])] == ids + pair
    assert "2 of 7 people" in caplog.text
    assert "Each of them is taken for the one who speaks" in caplog.text


def test_batches_hold_what_is_seen(tmp_path, prepared):
    path = write(tmp_path / "dev.tsv", "m0\tann0.mpg\tbob0.mpg\t0", "m1\tann1.mpg\tbob1.mpg\t0")
    config = visualvoice.get_config("debug")
    part = opened(path, config, audio_root=str(prepared))
    rows = 0
    for batch in data.eval_batches(part, workdir.freeze(config), None, in_full=True):
        rows += int(batch["mask"].sum())
        seen = batch["mouth_seen"][batch["mask"]]
        assert seen.sum() == 40 * len(seen)
        assert batch["other_face"].shape[1:] == (1, 224, 224, 3)
        assert batch["strange_mouth"].shape == batch["mouth"].shape
    assert rows == 4


def test_what_does_not_go_together_is_one_message(tmp_path, prepared):
    films = write(tmp_path / "dev.tsv", "m0\tann0.mpg\tbob0.mpg\t0")
    plain = "mix\tsource1\tsource2\tspeaker1\tspeaker2\ts1_over_s2_db"
    sounds = write(tmp_path / "s.tsv", "m\ta\tb\ta\tb\t0", header=plain)
    root = {"audio_root": str(prepared)}

    def refused(path, says, config=None, **changes):
        with pytest.raises(errors.UserError, match=says) as said:
            opened(path, config, **changes)
        assert "\n" not in str(said.value)

    refused(sounds, r"s\.tsv: this network sees .* columns video1, video2, s1_over_s2_db", **root)
    refused(films, r"dev\.tsv: its films are those .* set config\.data\.audio_root")
    refused(films, "There is no manifest .*none", audio_root=str(tmp_path / "none"))
    write(films, "m0\tann0.mpg\tzoe.mpg\t0", "m1\tzoe.mpg\tnone.mpg\t0")
    refused(films, r"line 2: nobody is in view in 'zoe\.mpg', .*\(2 of 3 films", **root)
    write(films, "m0\tann0.mpg\tpair.mpg\t0")
    refused(films, r"line 2: 2 people are in view in 'pair\.mpg'.* of one person each", **root)
    write(films, "m0\tann0.mpg\tbob0.mpg\tloud")
    refused(films, r"line 2: s1_over_s2_db is 'loud'", **root)
    write(films)
    refused(films, "holds no mixtures", **root)
    write(films, "m0\tann0.mpg\tbob0.mpg\t0")
    (prepared / "mouths" / "bob0.h5").write_text("no pictures")
    refused(films, r"line 2: .*bob0.* cannot be used: unreadable .*\(1 of 2 files", **root)
    (prepared / "mouths" / "bob0.h5").unlink()
    refused(films, r"line 2: .*bob0.* cannot be used: missing file", **root)


@pytest.mark.slow
def test_a_training_run_is_evaluated_on_films(tmp_path, prepared):
    """From the command: in training and in all modes."""
    path = write(tmp_path / "films.tsv", "m0\tann0.mpg\tbob0.mpg\t0", "m1\tann1.mpg\tbob1.mpg\t3")
    run = tmp_path / "run"
    said = commands.run(
        "separation.main",
        "--config=configs/separation/audiovisual_quickstart.py:debug",
        *(f"--workdir={run}", f"--config.data.lists={path}"),
        *(f"--config.data.audio_root={prepared}", "--config.total_steps=4"),
        *("--config.evaluate_every=4", "--config.checkpoint_every=4"),
    )
    assert "films SI-SDRi by lips alone" in said.stdout
    said = commands.run(
        "separation.main",
        *(f"--workdir={run}", "--mode=evaluate", "--config.data.eval="),
    )
    for mode in ("with all cues", "by the other's lips", "by the lips of somebody else"):
        assert f"films SI-SDRi {mode}" in said.stdout
    assert (run / "results" / "films.csv").read_text().count("ann0") >= 2
