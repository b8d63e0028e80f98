"""Talking faces of the embedded corpus: what is drawn, how it lies to the audio, the cache."""

import concurrent.futures
import errno
import hashlib
import json
import pathlib
import pickle
import shutil

import espeakng_loader
import numpy as np
import pytest

from common.data import embedded
from common.data.embedded import faces, talking, visemes, voices

GOLDEN = ["a36010220f0489e5", "819a5b9d81bfab86"]
TINY = embedded.CorpusSettings(
    hours=0.012, eval_hours=0.003, seed=1, train_voices=10, eval_voices=3
)


def files(folder: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache")
    talking.TalkingFaces("train", TINY, folder, num_workers=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def source(cache) -> talking.TalkingFaces:
    return talking.TalkingFaces("train", TINY, cache, progress=False)


def test_records_are_those_of_the_corpus_with_pictures(cache, source):
    speech = embedded.EmbeddedCorpus("train", TINY, cache, progress=False)
    assert len(source) == len(speech)
    for index in (0, len(speech) - 1):
        plain, record = speech[index], source[index]
        np.testing.assert_array_equal(record.pop("audio"), plain.pop("audio"))
        video, face = (np.asarray(record.pop(key)) for key in ("video", "face"))
        factors = record.pop("factors")
        assert record == plain
        count = visemes.num_frames(speech[index]["audio"].size, 16_000)
        assert (video.shape, video.dtype) == ((count, 96, 96), np.uint8)
        assert (face.shape, face.dtype) == ((faces.PORTRAITS, 224, 224, 3), np.uint8)
        assert list(factors) == [*faces.VOICED, *faces.FREE]
        assert factors == source.speakers[record["speaker"]]["factors"]


def test_the_corpus_stays_as_it_is(cache, tmp_path):
    """Its key, its files and their bytes, whether faces are asked for or not."""
    plain = embedded.render(TINY, tmp_path, num_workers=1, progress=False)
    assert not list((tmp_path / "embedded").glob("*faces*"))
    assert files(plain) == files(cache / "embedded" / TINY.key())
    names = {path.name for path in plain.rglob("*.*")}
    assert names == {"corpus.json", "records.jsonl", "audio-00000.i16"}


def test_same_bytes_for_any_number_of_workers(cache, tmp_path):
    shutil.copytree(cache / "embedded" / TINY.key(), tmp_path / TINY.key())
    again = talking.draw(tmp_path / TINY.key(), num_workers=1, progress=False)
    assert files(again) == files(cache / "embedded" / again.name)


def test_portraits_alone_are_the_same(cache, source):
    """Without the films, in a folder of their own."""
    corpus = source.speech.folder.parent
    drawn = talking.draw(corpus, mouths=False, num_workers=1, progress=False)
    alone = talking.Portraits(drawn / "train")
    assert alone.folder != source.folder
    assert not list(alone.folder.glob("mouths*"))
    again = pickle.loads(pickle.dumps(alone))
    for speaker, about in source.speakers.items():
        np.testing.assert_array_equal(again[speaker], source.portraits(speaker))
        assert again.lines[speaker]["factors"] == about["factors"]
    with pytest.raises(KeyError):
        alone["nobody"]


def test_drawings_are_those_of_this_version():
    """Where this fails and the change is meant: raise talking._DRAW_VERSION."""
    face = faces.make_face("golden", 120.0, 97.0)
    phones = [(60.0, "h"), (110.0, "@"), (170.0, "l"), (260.0, "'oU"), (480.0, "m"), (560.0, "i:")]
    track = visemes.mouth_track(phones, 800.0, strength=face.strength)
    pictures = faces.draw_mouths(face, track, "golden"), faces.draw_portraits(face, "golden")
    found = [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in pictures]
    assert (talking._DRAW_VERSION, found) == (1, GOLDEN)


def opening_of(video: np.ndarray) -> np.ndarray:
    """How much of the middle of a mouth is dark or bright against the frame's usual skin."""
    middle = video[:, 20:80, 28:68].astype(float)
    return np.abs(middle - np.median(middle, axis=(1, 2), keepdims=True)).mean(axis=(1, 2))


def tracks(source):
    for index in range(len(source)):
        record = source.speech.entry(index)
        record = record | {"phones": [(float(ms), phone) for ms, phone in record["phones"]]}
        yield record, visemes.mouth_track(record["phones"], record["samples"] / 16)


def test_lips_are_closed_at_bilabials(source):
    """And when they are closed for a stop, nothing is heard."""
    seen, quiet = 0, []
    for index, (record, track) in enumerate(tracks(source)):
        time = 40 * (np.arange(len(track)) + 0.5)
        audio = source.speech[index]["audio"].astype(float)
        for start, end, phone in visemes.spans(record["phones"], record["samples"] / 16):
            inside = (time > start + 5) & (time < end - 5)
            if phone in visemes.BILABIAL:
                assert (track[inside, 0] == 0).all()
                seen += inside.sum()
            if phone in ("p", "b") and start > 200:
                middle = audio[int(16 * (start + 15)) : int(16 * (end - 10))]
                ratio = np.mean(np.square(middle)) / np.mean(np.square(audio))
                quiet.append(10 * np.log10(ratio + 1e-9))
    assert seen > 20
    assert np.median(quiet) < -20


def test_the_opening_follows_the_energy_without_delay(source):
    """Of the audio that is heard, so the phonemes' times are those of the trimmed recording."""
    by_lag: dict[int, list[float]] = {lag: [] for lag in (-1, 0, 1)}
    for index, (_, track) in enumerate(tracks(source)):
        audio = source.speech[index]["audio"].astype(float)
        padded = np.pad(audio, (0, 640 * len(track) - audio.size)).reshape(len(track), 640)
        energy = np.sqrt(np.mean(np.square(padded), axis=1))
        for lag, found in by_lag.items():
            rolled = np.roll(energy, lag)[3:-3]
            found.append(np.corrcoef(track[3:-3, 0], rolled)[0, 1])
    assert np.mean(by_lag[0]) > 0.5
    assert np.mean(by_lag[0]) > max(np.mean(by_lag[-1]), np.mean(by_lag[1])) + 0.05


def test_pictures_show_the_opening(source):
    found = [
        np.corrcoef(opening_of(np.asarray(source.mouths(index))), track[:, 0])[0, 1]
        for index, (_, track) in zip(range(8), tracks(source))
    ]
    assert np.mean(found) > 0.5


def test_what_the_voice_has_is_what_is_heard(source):
    """Over voices, the pitch that a face shows is that of the recordings."""
    asked, heard = [], []
    for index in range(len(source)):
        audio = source.speech[index]["audio"].astype(float)
        lags = []
        for start in range(0, audio.size - 1600, 800):
            frame = audio[start : start + 1600] - audio[start : start + 1600].mean()
            correlation = np.fft.irfft(np.abs(np.fft.rfft(frame, 4096)) ** 2)[:1600]
            lag = 40 + int(np.argmax(correlation[40:267]))
            if correlation[lag] > 0.5 * correlation[0] > 0:
                lags.append(lag)
        speaker = source.speech.entry(index)["speaker"]
        asked.append(np.log2(source.speakers[speaker]["pitch_hz"]))
        heard.append(np.log2(16_000 / np.median(lags)))
    assert np.corrcoef(asked, heard)[0, 1] > 0.8


def test_factors_of_voices_that_are_known():
    data = pathlib.Path(espeakng_loader.get_data_path())
    voice = voices.parse_voice("enus_f1_50_140_50_24")
    assert talking.voice_factors(voice, data) == (170.0, 110.0)  # its file: 140 200; 120, 100
    assert talking.voice_factors(voices.parse_voice("enus_klatt3_50_140_50_24"), data) == (100, 100)
    assert talking.voice_factors(voices.parse_voice("enus_mrserious_50_140_50_24"), data)[1] == 100


def test_it_pickles_as_paths(source):
    source[0]
    text = pickle.dumps(source)
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text)[1]["video"], source[1]["video"])


def test_the_folder_says_what_follows_the_voice(source):
    about = json.loads((source.folder.parent / "faces.json").read_text())
    assert about["corpus"] == TINY.key()
    assert about["follow_the_voice"] == list(faces.VOICED)
    assert source.fingerprint == f"{TINY.key()}-faces{talking._DRAW_VERSION}/train"


def test_a_damaged_file_is_named(source, tmp_path):
    copy = pickle.loads(pickle.dumps(source))
    copy.folder = tmp_path / "train"
    shutil.copytree(source.folder, copy.folder)
    path = copy.folder / "mouths-00000.npz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"mouths-00000.* is damaged"):
        np.asarray(copy.mouths(0))


def test_films_are_read_in_threads(source):
    """As NumPy's reader could not: its headers go through `ast`."""
    whole = [np.asarray(source.mouths(index)) for index in range(6)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: np.asarray(source.mouths(k % 6)), range(400)))
    assert all(np.array_equal(film, whole[k % 6]) for k, film in enumerate(found))


def test_failures_leave_nothing(cache, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    shutil.copytree(cache / "embedded" / TINY.key(), corpus)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(talking.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(embedded.RenderError, match="GiB free"):
            talking.draw(corpus, progress=False)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "run_jobs", full)
        with pytest.raises(embedded.RenderError, match="No space left on device"):
            talking.draw(corpus, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["corpus"]
