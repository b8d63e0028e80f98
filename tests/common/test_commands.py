"""Commands of a wav.scp: those that only decode give the file's samples, and none is run."""

import os
import subprocess

import av
import numpy as np
import pytest
import soundfile

from common.audio import io
from common.data import commands, kaldi, records

RATE_HZ = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same second of two channels in several formats, and an AAC of its own."""
    folder = tmp_path_factory.mktemp("pipes")
    stereo = np.random.default_rng(0).integers(-9000, 9000, (RATE_HZ, 2)).astype(np.int16)
    soundfile.write(folder / "x.wav", stereo, RATE_HZ)
    soundfile.write(folder / "x.flac", stereo, RATE_HZ)
    soundfile.write(folder / "x.sph", stereo, RATE_HZ, format="NIST")
    soundfile.write(folder / "it's $x (1).wav", stereo, RATE_HZ)
    with av.open(str(folder / "x.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="stereo")
        frame = av.AudioFrame.from_ndarray(stereo.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return folder


def one(path, channel):
    """A channel of a file: by soundfile, or by this project's reader of what that does not read."""
    if path.suffix == ".m4a":
        return io.load_audio(path, sample_rate_hz=RATE_HZ, channel=channel)
    return soundfile.read(path, dtype="float32")[0][:, channel]


DECODING = {
    "flac -c -d -s x.flac |": ("x.flac", None),
    "/usr/bin/flac -dcs x.flac|": ("x.flac", None),
    "flac --decode --stdout --silent x.flac |": ("x.flac", None),
    "sph2pipe -f wav x.sph |": ("x.sph", None),
    "/opt/kaldi/tools/sph2pipe_v2.5/sph2pipe -f wav -p -c 1 x.sph |": ("x.sph", 0),
    "sph2pipe -f rif -p -c 2 x.sph |": ("x.sph", 1),
    "ffmpeg -v 8 -i x.m4a -f wav -acodec pcm_s16le -|": ("x.m4a", None),
    "ffmpeg -i x.m4a -ar 16000 -ac 1 -f wav - 2>/dev/null |": ("x.m4a", "mean"),
    "ffmpeg -nostdin -y -i x.flac -vn -f wav pipe:1 |": ("x.flac", None),
    "sox x.flac -t wav - |": ("x.flac", None),
    "sox x.flac -t wav -r 16k -b 16 -e signed - |": ("x.flac", None),
    "sox -t wav x.wav -r 16000 -b 16 -c 1 -t wav - |": ("x.wav", "mean"),
    "sox x.flac -t wav - remix 2 |": ("x.flac", 1),
    "sox -V1 x.wav --rate 44100 --bits 16 -t wavpcm - |": ("x.wav", None),
    "cat x.wav |": ("x.wav", None),
    r"""cat "it's "'$x (1).wav' |""": ("it's $x (1).wav", None),
    r"cat it\'s\ \$x\ \(1\).wav |": ("it's $x (1).wav", None),
}


def read(folder, monkeypatch, tmp_path, lines, **tables):
    """The records of a data folder whose wav.scp has these lines, read where the files are."""

    def run(*_, **__):
        raise AssertionError("a command was run")

    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn")):
        monkeypatch.setattr(module, name, run)
    monkeypatch.chdir(folder)
    rows = [f"u{k:02} {line}\n" for k, line in enumerate(lines)]
    ids = tables.pop("ids", [row.split()[0] for row in rows])
    (tmp_path / "wav.scp").write_text("".join(rows))
    (tmp_path / "utt2spk").write_text("".join(f"{name} ann\n" for name in ids))
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    return kaldi.read_folders("", [str(tmp_path)], sample_rate_hz=RATE_HZ)


def test_commands_that_only_decode_give_the_samples_of_the_file(folder, monkeypatch, tmp_path):
    for record, (name, channel) in zip(
        read(folder, monkeypatch, tmp_path, DECODING), DECODING.values(), strict=True
    ):
        assert record["audio"] == str(folder / name)
        for wanted in ("mean", 1):  # config.data.channel, where the command chooses none
            found = records.load_record(record, RATE_HZ, wanted)
            samples = np.stack([one(folder / name, channel) for channel in (0, 1)], axis=1)
            which = wanted if channel is None else channel
            expected = samples.mean(1) if which == "mean" else samples[:, which]
            np.testing.assert_allclose(found, expected, atol=1e-7)


def test_segments_of_what_a_command_decodes(folder, monkeypatch, tmp_path):
    lines = ["sph2pipe -f wav -p -c 2 x.sph |"]
    tables = {"segments": "a u00 0.25 0.5\n", "ids": ["a"]}
    (record,) = read(folder, monkeypatch, tmp_path, lines, **tables)
    whole, _ = soundfile.read(folder / "x.wav", dtype="float32")
    np.testing.assert_array_equal(records.load_record(record, RATE_HZ), whole[4000:8000, 1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("touch ran |", "'touch' is none of the programs that are understood: cat, ffmpeg"),
        ("rm -rf x | cat x.wav |", r"'\|' is for a shell"),
        ("cat x.wav; touch ran |", "';' is for a shell"),
        ("cat x.wav && touch ran |", "'&' is for a shell"),
        ("cat $(touch ran) |", r"'\$' is for a shell"),
        ('cat "`touch ran`" |', "'`' is for a shell"),
        ("cat x.wav > ran |", "'>' is for a shell"),
        ("cat ~/x.wav |", "'~' is for a shell"),
        ("X=1 cat x.wav |", "'X=1' is none of"),
        ("cat 'x.wav |", "quotation mark"),
        ("cat x.wav x.wav |", "2 files; one is expected"),
        ("flac -c -d --skip=100 x.flac |", "the option --skip=100 may change"),
        ("flac -c x.wav |", "without -c and -d"),
        ("sph2pipe -p x.sph |", "without -f wav"),
        ("sph2pipe -f wav -c 3 x.sph |", "-c 3 is not 1 or 2"),
        ("sph2pipe -f wav -t 1:2 x.sph |", "the option -t may change"),
        ("sph2pipe -f wav -u x.sph |", "the option -u may change"),
        ("ffmpeg -ss 1 -i x.m4a -f wav - |", "the option -ss may change"),
        ("ffmpeg -i x.m4a -map 0:1 -f wav - |", "the option -map may change"),
        ("ffmpeg -i x.m4a -ac 2 -f wav - |", "-ac 2 is not 1"),
        ("ffmpeg -ar 8000 -i x.wav -f wav - |", "-ar stands before -i"),
        ("ffmpeg -i x.m4a -ar 8000 -f wav - |", "-ar 8000 is below config.data.sample_rate_hz"),
        ("ffmpeg -i concat:a|b -f wav - |", r"'\|' is for a shell"),
        ("ffmpeg -i http://a/b.mp3 -f wav - |", "of a protocol"),
        ("ffmpeg -i x.wav -f wav out.wav |", "without -f wav -"),
        ("sox x.wav -t wav - speed 0.9 |", "the effect 'speed 0.9' changes the sound"),
        ("sox x.wav -t wav - remix 1,2 |", "the effect 'remix 1,2'"),
        ("sox --vol 0.5 x.wav -t wav - |", "the option --vol may change"),
        ("sox -r 8000 x.wav -t wav - |", "-r before the file overrides"),
        ("sox -t raw x.wav -t wav - |", "-t raw has no header"),
        ("sox x.wav -r 8k -t wav - |", "-r 8k is below config.data.sample_rate_hz=16000"),
        ("sox x.wav -b 8 -t wav - |", "-b 8 is not 16 or 24 or 32"),
        ("sox x.wav x.wav -t wav - |", "one file, and -"),
        ("sox x.wav -t raw - |", "-t raw is not wav or wavpcm"),
        ("| cat x.wav", r"'\|' is for a shell"),
        ("cat - |", "it names no file"),
        ("|", "names no program"),
    ],
)
def test_other_commands_are_refused_with_the_reason_and_not_run(
    folder, monkeypatch, tmp_path, line, reason
):
    with pytest.raises(records.DataError, match=r"wav.scp: 1 of 2 lines are commands") as found:
        read(folder, monkeypatch, tmp_path, ["x.wav", line])
    assert f"not run; the first: u01 {line} (" in str(found.value)
    assert "Write what they give to files" in str(found.value)
    assert not list(folder.glob("ran"))
    with pytest.raises(ValueError, match=reason):
        commands.parse(line, RATE_HZ)
