"""The embedded corpus: voices, rendering, cache, command line and tfds builder."""

import collections
import concurrent.futures
import errno
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from common import cache as cache_lib
from common.data import embedded
from common.data.builders.embedded import embedded_dataset_builder
from common.data.embedded import sentences, tree, voices, worker

TINY = embedded.CorpusSettings(hours=0.01, eval_hours=0.003, seed=1, train_voices=10, eval_voices=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache")
    embedded.render(TINY, folder, num_workers=2, progress=False)
    return folder


def _utterance(
    text="WHERE IS THE YELLOW UMBRELLA", question=False, **changes
) -> embedded.Utterance:
    settings = {"variant": "m3", "accent": "en-us", "pitch": 45, "rate_wpm": 140, "range": 50}
    voice = voices.Voice(**(settings | {"level_dbfs": -24} | changes))
    return embedded.Utterance("x", voice, text, question)


def _level_dbfs(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(audio / 32767)))


# ---- voices


def test_voices_are_distinct_and_their_ids_spell_them():
    drawn = [v for s in voices.SPLITS for v in voices.draw_voices(s, 200, 0)]
    ids = [voice.id for voice in drawn]
    assert len(set(ids)) == 600
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in ids)
    assert [voices.parse_voice(name) for name in ids] == drawn
    assert len({(v.variant, v.accent, v.pitch) for v in drawn}) == 600
    assert {v.sex for v in drawn} == {"M", "F"}
    with pytest.raises(ValueError, match="no voice id"):
        voices.parse_voice("enus_nobody_1_2_3_4")


def test_held_out_variants_are_never_heard_in_training():
    heard = {split: set(voices.variants(split)) for split in voices.SPLITS}
    assert not heard["train"] & (heard["dev"] | heard["test"])
    assert not heard["dev"] & heard["test"]
    for split in voices.SPLITS:
        assert {v.split for v in voices.draw_voices(split, 100, 3)} == {split}


def test_a_larger_draw_begins_with_the_smaller():
    assert voices.draw_voices("train", 90, 2)[:30] == voices.draw_voices("train", 30, 2)
    assert voices.draw_voices("train", 30, 2) != voices.draw_voices("train", 30, 3)
    with pytest.raises(ValueError, match="room for"):
        voices.draw_voices("dev", 10_000, 0)


# ---- speaking


def test_importing_loads_neither_espeak_nor_jax():
    code = (
        "import sys; from common.data import embedded;"
        "print([m for m in ('jax', 'espeakng_loader', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_depend_on_voice_and_text_alone():
    first, second = _utterance(), _utterance("THREE TINY FROGS SANG", variant="f2", accent="en-029")
    third = _utterance("HELLO NORA", variant="Mr_serious", accent="en-gb")
    forward = embedded.speak([first, second, third])
    backward = embedded.speak([third, second, first], num_workers=2)
    for (audio, phones), (other, other_phones) in zip(forward, backward[::-1]):
        np.testing.assert_array_equal(audio, other)
        assert phones == other_phones
    assert not np.array_equal(forward[0][0][:5000], forward[1][0][:5000])


def test_phones_lie_within_the_audio_in_order():
    [(audio, phones)] = embedded.speak([_utterance("SIX ZEBRAS")])
    times = [ms for ms, _ in phones]
    names = "".join(phone.strip("',") for _, phone in phones if not phone.startswith("_"))
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= 1e3 * audio.size / embedded.SAMPLE_RATE_HZ
    assert names.startswith("sIks")
    # The stressed vowel of SIX is louder than the s before it, so the times are those of the audio.
    ms = dict((phone.strip("',"), time) for time, phone in reversed(phones))

    def energy(start, end):
        return np.mean(np.square(audio[16 * start : 16 * end].astype(float)))

    assert energy(ms["I"], ms["k"]) > 4 * energy(0, ms["I"] // 2)


def _fundamental_hz(audio: np.ndarray) -> float:
    """Median over voiced frames of the autocorrelation peak between 60 and 400 Hz."""
    found = []
    for start in range(0, audio.size - 1600, 400):
        frame = audio[start : start + 1600].astype(float)
        spectrum = np.abs(np.fft.rfft(frame - frame.mean(), 4096)) ** 2
        correlation = np.fft.irfft(spectrum)[:1600]
        lag = 40 + int(np.argmax(correlation[40:267]))
        if correlation[lag] > 0.5 * correlation[0] > 0:
            found.append(embedded.SAMPLE_RATE_HZ / lag)
    return float(np.median(found))


def test_pitch_rate_and_level_do_what_they_say():
    low, high, fast, loud = (
        audio
        for audio, _ in embedded.speak(
            [
                _utterance(pitch=25),
                _utterance(pitch=75),
                _utterance(pitch=25, rate_wpm=165),
                _utterance(pitch=25, level_dbfs=-20),
            ],
            num_workers=2,
        )
    )
    assert 60 < _fundamental_hz(low) < 0.8 * _fundamental_hz(high) < 200
    # 165/140 is 1.18; pauses do not all shrink.
    assert 1.1 < low.size / fast.size < 1.25
    # Rounding to 16 bits moves a level of -24 dBFS by less than 0.01 dB.
    assert abs(_level_dbfs(low) + 24) < 0.01
    assert abs(_level_dbfs(loud) + 20) < 0.01


def test_finish_trims_resamples_and_scales():
    rate = 22_050
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    padded = np.concatenate([np.zeros(rate // 2), 8000 * tone, np.zeros(rate)]).astype(np.int16)
    audio, cut_ms = worker.finish(padded, rate, -20.0)
    assert audio.dtype == np.int16
    # A margin of 60 ms stays on both sides.
    assert cut_ms == pytest.approx(440, abs=1)
    assert audio.size / 16_000 == pytest.approx(1.12, abs=0.002)
    assert _level_dbfs(audio) == pytest.approx(-20, abs=0.01)
    middle = audio[2000:14_000] / 32767
    peak_hz = np.argmax(np.abs(np.fft.rfft(middle))) * 16_000 / middle.size
    assert peak_hz == pytest.approx(1000, abs=1.5)
    # A level that would clip is lowered.
    assert np.abs(worker.finish(padded, rate, 0.0)[0]).max() <= 0.95 * 32767 + 1
    with pytest.raises(RuntimeError, match="silence"):
        worker.finish(np.zeros(1000, np.int16), rate, -20.0)


def test_a_failing_worker_says_which_voice_and_text():
    with pytest.raises(embedded.RenderError, match="no voice variant mxx"):
        embedded.speak([_utterance(variant="mxx")])
    with pytest.raises(embedded.RenderError, match=r"'hello nora.' as 'en-zz\+m3': .*no voice"):
        embedded.speak([_utterance("HELLO NORA", accent="en-zz")])


# ---- corpus


def test_records_fulfil_the_contract(cache):
    said = {}
    for split in embedded.SPLITS:
        source = embedded.EmbeddedCorpus(split, TINY, cache)
        records = [source[i] for i in range(len(source))]
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            assert record["audio"].dtype == np.int16
            assert record["sample_rate"] == 16_000
            assert 0.4 < record["audio"].size / 16_000 < 8
            assert -32 < _level_dbfs(record["audio"]) < -19
            voice = voices.parse_voice(record["speaker"])
            assert voice.split == split
            assert record["gender"] == {"F": "f", "M": "m"}[voice.sex]
            assert sentences.split_of(record["text"]) == split
            assert record["phones"][-1][0] <= record["audio"].size / 16_000
        seconds = sum(record["audio"].size for record in records) / 16_000
        # The lengths are estimated from the texts; 12 % is room for two dozen utterances.
        assert seconds == pytest.approx(3600 * TINY.split_hours(split), rel=0.12)
        said[split] = {record["text"] for record in records}
    assert not said["train"] & (said["dev"] | said["test"])
    with pytest.raises(IndexError):
        embedded.EmbeddedCorpus("dev", TINY, cache)[10_000]


def test_every_voice_speaks(cache):
    source = embedded.EmbeddedCorpus("train", TINY, cache)
    turns = collections.Counter(source[i]["speaker"] for i in range(len(source)))
    assert len(turns) == TINY.train_voices
    assert max(turns.values()) - min(turns.values()) <= 1


def test_pickles_small_and_lazily(cache):
    source = embedded.EmbeddedCorpus("test", TINY, cache)
    expected = source[1]
    data = pickle.dumps(source)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert (copy.name, copy.fingerprint) == (source.name, source.fingerprint)
    np.testing.assert_array_equal(copy[1]["audio"], expected["audio"])
    assert copy[1]["text"] == expected["text"]


def test_same_bytes_for_any_number_of_workers(cache, tmp_path):
    other = embedded.render(TINY, tmp_path, num_workers=1, progress=False)
    first = embedded.render(TINY, cache, progress=False)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        assert (first / file).read_bytes() == (other / file).read_bytes()


def test_settings_decide_the_key_and_the_cache_is_used_again(cache, monkeypatch):
    assert TINY.key() != embedded.CorpusSettings().key()
    monkeypatch.setattr(embedded, "_RENDER_VERSION", -1)
    changed = TINY.key()
    monkeypatch.undo()
    assert TINY.key() != changed
    monkeypatch.setattr(embedded, "render_into", lambda *_: pytest.fail("rendered again"))
    assert len(embedded.EmbeddedCorpus("train", TINY, cache)) > 0


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECH_CACHE", str(tmp_path))
    assert cache_lib.folder() == tmp_path
    monkeypatch.delenv("SPEECH_CACHE")
    assert cache_lib.folder() == pathlib.Path.home() / ".cache/speech-jax"


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), 1e6])
def test_bad_hours(hours):
    with pytest.raises(embedded.RenderError, match="hours"):
        embedded.CorpusSettings(hours=hours)


def test_too_many_voices():
    with pytest.raises(embedded.RenderError, match="5000 voices for dev: give 1 to 288"):
        embedded.CorpusSettings(eval_voices=5000)


def test_a_shortened_file_is_named(cache, tmp_path):
    folder = shutil.copytree(embedded.render(TINY, cache), tmp_path / "corpus") / "dev"
    os.truncate(folder / "audio-00000.i16", 1000)
    with pytest.raises(OSError, match=r"audio-00000\.i16 is cut short: delete"):
        embedded.EmbeddedCorpus.at(folder)[1]


def test_two_renderers_do_not_collide_and_rubbish_goes(tmp_path, monkeypatch):
    settings = embedded.CorpusSettings(0.001, 0.001, train_voices=3, eval_voices=3)
    stale = tmp_path / "embedded" / f"{settings.key()}.tmp-1"
    stale.mkdir(parents=True)
    (stale / "audio").write_bytes(b"half")
    calls = []
    original = embedded.render_into
    monkeypatch.setattr(embedded, "render_into", lambda *a: (calls.append(1), original(*a)))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(embedded.render, settings, tmp_path, num_workers=1, progress=False)
            for _ in range(2)
        ]
        folders = {future.result() for future in futures}
    assert len(folders) == len(calls) == 1
    assert not list((tmp_path / "embedded").glob("*.tmp-*"))


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "plan", lambda *_: [_utterance(variant="mxx")])
    with pytest.raises(embedded.RenderError, match="mxx"):
        embedded.render(TINY, tmp_path, num_workers=2, progress=False)
    assert list((tmp_path / "embedded").iterdir()) == []


def test_a_killed_renderer_leaves_no_corpus_and_no_workers(tmp_path):
    code = (
        "import pathlib, sys; from common.data import embedded; out = pathlib.Path(sys.argv[1]);"
        "embedded.render(embedded.CorpusSettings(hours=20), out, num_workers=2)"
    )
    # The workers inherit stderr, so its end tells that they are gone.
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    with process:
        until = time.monotonic() + 60
        while not list(tmp_path.rglob("*.i16")) and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
        process.stderr.read()
    left = [path.name for path in (tmp_path / "embedded").iterdir()]
    assert sorted(name.partition(".")[2][:3] for name in left) == ["loc", "tmp"]


def test_clear_errors_for_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(embedded.RenderError, match=r"cannot be written .* SPEECH_CACHE"):
        embedded.render(TINY, tmp_path / "file", progress=False)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(embedded.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(embedded.RenderError, match="GiB free"):
            embedded.render(TINY, tmp_path, progress=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "render_into", full)
        with pytest.raises(embedded.RenderError, match="No space left on device"):
            embedded.render(TINY, tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.tmp-*"))


# ---- command line and tfds


def test_command_line_writes_a_tree(tmp_path):
    out = tmp_path / "tree"
    command = [sys.executable, "-m", "common.data.embedded", "--out", str(out), "--hours", "0.003"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "hours of synthetic speech" in done.stdout
    assert "rendering speech" in done.stderr
    transcripts = sorted(out.rglob("*.trans.txt"))
    assert transcripts
    said = 0
    for path in transcripts:
        for line in path.read_text().splitlines():
            name, _, text = line.partition(" ")
            info = soundfile.info(path.parent / f"{name}.flac")
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert name.rsplit("-", 1)[0] == path.name.removesuffix(".trans.txt")
            assert set(text.split()) <= set(sentences.vocabulary())
            said += 1
    assert said == len(list(out.rglob("*.flac")))
    rows = (out / "SPEAKERS.TXT").read_text().splitlines()[1:]
    assert {row.split(" | ")[2] for row in rows} == set(embedded.SPLITS)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_command_line_errors(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        tree.main(["--out", str(tmp_path / "new"), "--hours", "-3"])
    assert stopped.value.code == 2
    assert "hours=-3.0 is out of range" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path, "is there and not an empty folder"),
        (tmp_path / "file" / "new", "cannot be written: File exists"),
    ):
        with pytest.raises(SystemExit) as stopped:
            tree.main(["--out", str(out), "--hours", "1"])
        assert message in str(stopped.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_tfds_builder_writes_and_reads_array_record(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECH_CACHE", str(cache))
    config = embedded_dataset_builder.EmbeddedConfig(name="tiny", settings=TINY)
    builder = embedded_dataset_builder.Builder(
        data_dir=tmp_path, config=config, file_format="array_record"
    )
    builder.download_and_prepare()
    for split in embedded.SPLITS:
        source = embedded.EmbeddedCorpus(split, TINY, cache)
        built = builder.as_data_source(split)
        assert len(built) == len(source)
        by_id = {source[i]["id"]: source[i] for i in range(len(source))}
        for i in range(len(built)):
            record = built[i]
            expected = by_id.pop(record["id"].decode())
            np.testing.assert_array_equal(record["audio"], expected["audio"])
            assert record["text"].decode() == expected["text"]
            assert record["speaker"].decode() == expected["speaker"]
        assert not by_id
    assert "tensorflow" not in sys.modules


# ---- slow: all of eSpeak's voices and words


@pytest.mark.slow
def test_no_two_words_sound_alike():
    """Words that eSpeak NG gives the same phonemes in American English could not be told apart."""
    words = sentences.vocabulary()
    sounds = collections.defaultdict(list)
    for word, (_, phones) in zip(
        words, embedded.speak([_utterance(w) for w in words], num_workers=2)
    ):
        spelled = " ".join(p.strip("',%") for _, p in phones if not p.startswith("_"))
        sounds[spelled].append(word)
    assert [same for same in sounds.values() if len(same) > 1] == []
    # The check would see one.
    twins = embedded.speak([_utterance("TWO"), _utterance("TO")])
    assert [p for _, p in twins[0][1]] == [p for _, p in twins[1][1]]


@pytest.mark.slow
def test_every_variant_and_accent_speaks_audibly_and_differently():
    utterances = [
        _utterance("THE QUIET SAILOR WATCHED SEVEN LIONS", variant=variant)
        for split in voices.SPLITS
        for variant in voices.variants(split)
    ] + [
        _utterance("THE QUIET SAILOR WATCHED SEVEN LIONS", accent=accent)
        for accent in voices.ACCENTS
        if accent != "en-us"
    ]
    heard = set()
    for utterance, (audio, _) in zip(utterances, embedded.speak(utterances, num_workers=2)):
        name = utterance.voice.espeak_name
        assert 1.5 < audio.size / 16_000 < 4.5, name
        assert np.abs(audio).max() < 32_000, name
        # Peaky voices may lie lower, because they are kept from clipping.
        assert -30 < _level_dbfs(audio) < -23.9, name
        power = np.abs(np.fft.rfft(audio / 32767)) ** 2
        hertz = np.fft.rfftfreq(audio.size, 1 / 16_000)
        assert power[hertz < 4000].sum() > 0.7 * power.sum(), name  # vowels, not hiss
        assert power[hertz > 3000].sum() > 1e-5 * power.sum(), name  # and consonants
        heard.add(audio.tobytes())
    assert len(heard) == len(utterances)
    json.dumps([utterance.job() for utterance in utterances])
