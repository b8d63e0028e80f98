"""What stands in the files: after a resume, a kill in mid-line, a full disk, without a network."""

import io
import json
import logging
import math
import pathlib
import struct
import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from common import pictures, writers


def make(folder, **settings):
    settings = {"tensorboard": False, "terminal": False, **settings}
    return writers.Writers(folder, **settings)


def events(folder: pathlib.Path):
    """Every event of a TensorBoard folder, oldest file first; checks lengths and checksums."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: int(p.name.rsplit(".", 1)[1])):
        rest = path.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            data, rest_crc = rest[12 : 12 + length], rest[12 + length : 16 + length]
            assert rest[8:12] == struct.pack("<I", record_writer.masked_crc32c(rest[:8]))
            assert rest_crc == struct.pack("<I", record_writer.masked_crc32c(data))
            found.append(event_pb2.Event.FromString(data))
            rest = rest[16 + length :]
    return found


def test_jsonl_is_valid_json_with_plain_floats(tmp_path):
    with make(tmp_path) as w:
        w.scalars(1, "train", {"loss": np.float32(0.5), "n": 3})
        w.scalars(2, "dev", {"loss": math.nan, "wer": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert strict == [
        {"step": 1, "split": "train", "loss": 0.5, "n": 3.0},
        {"step": 2, "split": "dev", "loss": None, "wer": None},
    ]
    assert list(strict[0]) == ["step", "split", "loss", "n"]
    assert math.isnan(writers.read_metrics(tmp_path / "metrics.jsonl")[1]["wer"])


def test_reserved_names_are_refused(tmp_path):
    with make(tmp_path) as w, pytest.raises(ValueError, match=r"'dev'.*\['step'\]"):
        w.scalars(1, "dev", {"step": 1.0})


def test_resume_takes_back_lines_beyond_the_checkpoint_and_an_unfinished_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with make(tmp_path, resume_step=0) as w:
        for step in range(1, 9):
            w.scalars(step, "train", {"loss": step})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 9, "split": "tr')  # killed in mid-line
    with make(tmp_path, resume_step=5) as w:
        w.scalars(6, "train", {"loss": 60.0})
    assert [(m["step"], m["loss"]) for m in writers.read_metrics(path)] == [
        *((s, s) for s in range(1, 6)),
        (6, 60.0),
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.dropped.jsonl"}
    lost = writers.read_metrics(tmp_path / "metrics.dropped.jsonl")
    assert [m["loss"] for m in lost] == [6, 7, 8]
    # Evaluation only appends, but repairs the end before.
    path.write_bytes(path.read_bytes() + b'{"step": 7')
    with make(tmp_path) as w:
        w.scalars(6, "test", {"wer": 0.1})
    assert [m["split"] for m in writers.read_metrics(path)] == ["train"] * 6 + ["test"]
    # A run that starts anew from step 0 keeps nothing of the lost one, but beside its own.
    make(tmp_path, resume_step=0).close()
    assert path.read_bytes() == b""
    lost = writers.read_metrics(tmp_path / "metrics.dropped.jsonl")
    assert [m["step"] for m in lost] == [6, 7, 8, 1, 2, 3, 4, 5, 6, 6]


def test_every_kill_point_of_the_last_line_is_survived(tmp_path):
    with make(tmp_path) as w:
        w.scalars(1, "train", {"loss": 1.0})
        w.scalars(2, "train", {"loss": 2.0})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        make(tmp_path, resume_step=10).close()
        assert path.read_bytes() == whole[:first]


def test_full_disk_loses_a_line_not_the_run(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    with make(tmp_path) as w:
        w.scalars(1, "train", {"loss": 1.0})
        real = w._destinations[0]._file

        class Full:
            def write(self, content):
                return real.write(content[:7])  # what a file system does with its last bytes

            def fileno(self):
                return real.fileno()

        w._destinations[0]._file = Full()
        w.scalars(2, "train", {"loss": 2.0})
        w.scalars(3, "train", {"loss": 3.0})
        w._destinations[0]._file = real
        w.scalars(4, "train", {"loss": 4.0})
    assert [m["step"] for m in writers.read_metrics(path)] == [1, 4]
    assert [r.getMessage() for r in caplog.records] == [
        "metrics.jsonl: the line of step 2 was lost (no space left on the device); "
        "later ones are tried again"
    ]


def test_other_processes_write_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    with writers.Writers(folder, is_writer=False, wandb="offline") as w:
        w.scalars(1, "dev", {"loss": 1.0})
        w.image(1, "i", np.zeros((4, 4, 3), np.uint8))
        w.audio(1, "a", np.zeros(4, np.float32), 16000)
        w.text(1, "t", "text")
        w.log("line")
        with w.progress(10) as bar:
            bar.update(1, {"loss": 1.0})
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_tensorboard_events_and_their_purge(tmp_path):
    spectrogram = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    with make(tmp_path, tensorboard=True, resume_step=0) as w:
        w.scalars(3, "train", {"loss": 0.25})
        w.scalars(4, "dev", {"wer": math.nan})
        w.image(4, "dev/mel", pictures.spectrogram(spectrogram))
        w.image(4, "dev/picture", np.full((5, 6, 3), 0.5, np.float32))
        w.audio(4, "dev/audio", np.array([0.0, 2.0, math.nan], np.float32), 16000)
        w.text(4, "dev/text", "REF HYP")
    with make(tmp_path, tensorboard=True, resume_step=3) as w:
        w.scalars(4, "dev", {"wer": 0.5})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = events(tmp_path / "tensorboard")
    values = [(e.step, v) for e in found for v in e.summary.value]
    assert [(step, v.tag) for step, v in values] == [
        (3, "train/loss"),
        (4, "dev/wer"),
        (4, "dev/mel"),
        (4, "dev/picture"),
        (4, "dev/audio"),
        (4, "dev/text/text_summary"),
        (4, "dev/wer"),
    ]
    assert values[0][1].simple_value == 0.25
    assert (values[2][1].image.height, values[2][1].image.width) == (20, 30)
    assert values[2][1].image.encoded_image_string.startswith(b"\x89PNG")
    assert values[4][1].audio.encoded_audio_string.startswith(b"RIFF")
    assert values[4][1].audio.sample_rate == 16000
    # A START at step n hides what older files hold at n and later.
    starts = [e.step for e in found if e.session_log.status == event_pb2.SessionLog.START]
    assert starts == [1, 4]


def test_a_failing_destination_is_named_once_and_left(tmp_path, caplog):
    with make(tmp_path, tensorboard=True) as w:

        def full(_):
            raise OSError(28, "No space left on device")

        w._destinations[1]._file.write_event = full
        w.scalars(1, "train", {"loss": 1.0})
        w.scalars(2, "train", {"loss": 1.0})
    assert [r.getMessage() for r in caplog.records] == [
        "TensorBoard cannot be written, the run goes on without it: "
        "[Errno 28] No space left on device"
    ]
    assert len(writers.read_metrics(tmp_path / "metrics.jsonl")) == 2


def drawn(event_image: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(event_image)))


def portrait(height: int, width: int) -> np.ndarray:
    """No two pixels alike, so that a turn, a flip or a swap of colours shows."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 255 - rows - columns], -1).astype(np.uint8)


@pytest.mark.parametrize("size", [(7, 5), (3, 5), (5, 3), (3, 3), (1, 4), (4, 1)])
def test_pictures_stay_upright_and_in_their_colours(tmp_path, size):
    colours = portrait(*size)
    grey = colours[..., 2]
    pictures = {
        "bytes": colours,
        "fraction": colours / 255.0,
        "float32": (colours / 255.0).astype(np.float32),
        "view": colours[::-1][::-1],
        "grey": grey,
        "grey1": grey[..., None],
        "grey_fraction": (grey / 255.0).astype(np.float32),
    }
    with make(tmp_path, tensorboard=True) as w:
        for name, picture in pictures.items():
            w.image(1, name, picture)
    found = [v for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert [v.tag for v in found] == list(pictures)
    for value in found:
        right = np.stack([grey] * 3, -1) if value.tag.startswith("grey") else colours
        np.testing.assert_array_equal(drawn(value.image.encoded_image_string), right)
        assert (value.image.height, value.image.width) == size


def test_pictures_that_are_none_and_floats_of_another_scale(tmp_path, caplog):
    colours = portrait(4, 6)
    with make(tmp_path, tensorboard=True) as w:
        for shape in ((3, 4, 2), (3, 4, 4), (3, 8, 8), (2, 4, 4, 3), (4,)):
            with pytest.raises(ValueError, match=r"\[h,w,3\], \[h,w,1\] or \[h,w\], got shape"):
                w.image(1, "x", np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=r"uint8 or floats in 0\.\.1, got int64"):
            w.image(1, "x", colours.astype(np.int64))
        overshoot = np.array([[[-0.1, 1.2, np.nan]]])
        for name in ("dev/face", "dev/face", "dev/mouth"):
            w.image(1, name, colours.astype(np.float32))
            w.image(1, "dev/small", overshoot)
    assert [r.getMessage() for r in caplog.records] == [
        f"The picture {name} holds floats up to 255: 0..1 is expected, what is above is white. "
        "Divide it, or give uint8."
        for name in ("dev/face", "dev/mouth")
    ]
    found = [v for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert drawn(found[1].image.encoded_image_string).tolist() == [[[0, 255, 0]]]


def test_a_spectrogram_has_time_to_the_right_and_frequency_upwards():
    ramp = np.linspace(-3.0, 5.0, 12).reshape(6, 2)  # 6 frames, 2 bands
    ramp[0, 0] = np.nan
    coloured = pictures.spectrogram(ramp)
    assert coloured.shape == (2, 6, 3)
    assert coloured[0, -1].tolist() == [253, 231, 37]  # last frame, highest band: the maximum
    assert coloured[1, 0].tolist() == [0, 0, 0]  # NaN
    assert coloured[0, 0].tolist() == [68, 1, 84]  # the least finite value
    assert len(np.unique(pictures.spectrogram(np.zeros((3, 4))).reshape(-1, 3), axis=0)) == 1
    assert pictures.spectrogram(np.full((3, 4), np.nan)).max() == 0


def test_spectrograms_below_each_other_share_their_colours():
    low, high = np.zeros((6, 2)), np.full((6, 3), 4.0)
    high[0, 2] = 2.0
    coloured = pictures.stacked([low, high], gap=1)
    assert coloured.shape == (2 + 1 + 3, 6, 3)
    assert coloured[0, 0].tolist() == [68, 1, 84]  # the least of both
    assert coloured[2].max() == 0
    assert coloured[5, 0].tolist() == [253, 231, 37]  # the greatest of both
    assert coloured[3, 0].tolist() == [33, 144, 141]  # half way, in the highest band


def test_names_that_are_not_utf8_end_no_run(tmp_path, caplog):
    with make(tmp_path, tensorboard=True, terminal=True) as w:
        w.scalars(1, "/caf\udce9", {"wer": 1.0})
        w.image(1, "/caf\udce9/face", portrait(4, 4))
        w.audio(1, "/caf\udce9/speech", np.zeros(8, np.float32), 16000)
        w.text(1, "/caf\udce9/pairs", "\udce9 caf\udce9.wav")
    assert not caplog.records
    assert writers.read_metrics(tmp_path / "metrics.jsonl")[0]["split"] == r"/caf\udce9"
    assert len([v for e in events(tmp_path / "tensorboard") for v in e.summary.value]) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_evaluation_lines_are_aligned(tmp_path, capsys):
    with make(tmp_path, terminal=True) as w:
        w.scalars(5, "dev", {"loss": 1.23456, "wer": 0.1})
        w.scalars(1000, "dev", {"loss": 0.5, "wer": 0.08})
        w.scalars(1000, "train", {"loss": 0.5})
        w.log("saved")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "dev      step       5  loss 1.235      wer 0.1",
        "dev      step    1000  loss 0.5        wer 0.08",
        "saved",
    ]


def test_progress_without_a_terminal_is_a_line_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    settings = {"stream": stream, "line_seconds": 30.0, "clock": lambda: now[0]}
    with writers.Progress(1000, 500, **settings) as bar:
        for step in range(501, 1001):
            now[0] += 1.0 if step > 501 else 100.0  # the first step compiles
            bar.update(step, {"loss": 2.0, "audio_s/s": 55.123})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 501/1000  50 %  eta ?  loss 2          audio_s/s 55.12"
    # One step a second since the first, and the first is left out: 469 steps remain.
    assert lines[1].startswith("step 531/1000  53 %  eta 0:07:49  loss 2")
    assert lines[-1].startswith("step 1000/1000 100 %  eta 0:00:00")
    assert len(lines) == 1 + 16 + 1


def test_progress_on_a_terminal_is_a_bar_that_log_lines_do_not_break(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    handler = writers.TerminalHandler()
    with writers.Progress(10, 4) as bar:
        bar.update(7, {"loss": 2.0})
        handler.emit(logging.makeLogRecord({"msg": "a line"}))
        bar.update(10, {"loss": 1.0})
    assert "\ra line\n" in screen.getvalue().replace("\x1b[A", "")
    assert "10/10" in screen.getvalue()
    assert "loss 1" in screen.getvalue()


def test_wandb_that_cannot_start_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with make(tmp_path, wandb="online") as w:
        w.scalars(1, "train", {"loss": 1.0})
    (record,) = caplog.records
    assert "wandb did not start, the run goes on without it" in record.getMessage()
    assert len(writers.read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_wandb_offline_parts_are_runs_of_one_group(tmp_path):
    """So that none replaces another when they are uploaded; the terminal says how that is done.

    In processes of their own: wandb starts a service and keeps global state.
    """
    program = textwrap.dedent("""
        import logging, sys
        import numpy as np
        from common import writers
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        step = int(sys.argv[2])
        with writers.Writers(sys.argv[1], wandb="offline", config={"a": {"b": 1}}, project="p",
                             tensorboard=False, resume_step=step) as w:
            assert len(w._destinations) == 2
            w.scalars(7, "dev", {"loss": 1.0})
            w.scalars(6, "train", {"loss": float("nan")})
            w.image(7, "dev/face", np.load(sys.argv[3]))
            w.audio(7, "dev/caf\\udce9", np.zeros(160, np.float32), 16000)
            w.text(7, "pairs", "REF | HYP \\udce9")
    """)
    workdir = tmp_path / "my run"
    colours = portrait(1, 5)
    np.save(tmp_path / "colours.npy", colours)
    found = set()
    for step in ("0", "5", "5"):
        run = [sys.executable, "-c", program, workdir, step, tmp_path / "colours.npy"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "cannot be written" not in done.stderr
        (folder,) = set((workdir / "wandb").glob("offline-run-*")) - found
        found.add(folder)
        group = f"my run-{(workdir / 'wandb' / 'run_id').read_text().strip()}"
        said = (
            f"wandb is offline: {folder}. To upload this part and earlier ones, as runs of the "
            f"group {group}: wandb sync '{workdir}/wandb'"
        )
        assert done.stderr.splitlines().count(said) == 2  # before and after
        content = next(folder.glob("run-*.wandb")).read_bytes()
        assert b"dev/loss" in content
        assert group.encode() in content
        assert (b"my run from step 5" in content) == (step == "5")
        (picture,) = folder.glob("files/media/images/**/*.png")
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(picture)), colours)
    assert len({folder.name.split("-", 3)[3] for folder in found}) == 3  # the ids
    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", workdir / "wandb"]
    listed = subprocess.run(sync, capture_output=True, text=True, timeout=120, check=True)
    assert "Would sync 3 run(s)" in listed.stderr + listed.stdout
