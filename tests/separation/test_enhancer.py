"""`separation.load` and `separation.enhance`: lengths, rates, streams, and bad input."""

import jax
import numpy as np
import pytest

from asr import settings as asr_settings
from common import errors, parallel, trained, workdir
from common.audio import io
from configs.separation import quickstart
from separation import bench, enhance, enhancer, modes
from separation import task as separation_task
from tests import commands

RATE_HZ = 16000


def make(folder, configs=quickstart, **changes) -> enhancer.Enhancer:
    """A tiny network as it is before training, without a work directory."""
    config = configs.get_config("debug")
    config.loss.speaker = 0.0  # no training, no speakers
    config.update_from_flattened_dict(changes)
    config = workdir.freeze(config)
    task = separation_task.make_task(config, folder)
    variables = jax.jit(task.init)(jax.random.key(0))
    mesh = parallel.make_mesh(jax.devices()[:1])
    return enhancer.Enhancer(trained.Trained(folder, config, task, mesh, variables, {}))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return make(tmp_path_factory.mktemp("causal"), **{"model.causal.num_layers": 2})


def noise(seconds: float, rate: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).normal(size=round(seconds * rate))
    return (0.1 * samples).astype(np.float32)


def test_chunks_of_any_size_give_what_the_network_gives_of_the_whole(causal):
    """1e-5: chunks of other sizes add in another order."""
    mixture, enrolment = noise(1.3), noise(1.5, seed=1)
    lengths = np.array([len(mixture)])
    expected = causal._extract(
        causal._variables, mixture[None], lengths, causal.cue(enrolment, RATE_HZ)
    )
    sizes = np.random.default_rng(2).integers(0, 3000, size=40)
    stream = causal.stream(enrolment, RATE_HZ)
    parts, late = [], []
    for first, end in zip(np.cumsum(sizes) - sizes, np.cumsum(sizes)):
        parts.append(stream(mixture[first:end]))
        late.append(min(end, len(mixture)) - sum(map(len, parts)))
    assert max(late) < stream.delay_samples + causal.extractor.hop_size
    parts.append(stream.flush())
    np.testing.assert_allclose(np.concatenate(parts), expected[0], atol=1e-5)
    np.testing.assert_allclose(causal(mixture, RATE_HZ, enrolment), expected[0], atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_a_mixture_keeps_its_rate_and_length(causal, rate):
    """A tone comes back where and how it was, but for the network's own gain."""
    time = np.arange(rate + 17) / rate
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    found = causal(np.stack([tone, tone], axis=1), rate)
    assert found.shape == tone.shape
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert np.argmax(spectrum) * rate / len(found) == pytest.approx(440, rel=0.02)


def test_a_network_that_sees_everything_takes_long_recordings_in_pieces(tmp_path):
    network = make(tmp_path, **{"model.kind": "voicefilter"})
    mixture = noise(21.0)
    # A mask of one, so that what comes out is known: the pieces' weights add up to one.
    params = dict(network._variables["params"])
    fc2 = {"kernel": 0 * params["extractor"]["fc2"]["kernel"], "bias": np.full(257, 30, np.float32)}
    params["extractor"] = {**params["extractor"], "fc2": fc2}
    network._variables = {**network._variables, "params": params}
    np.testing.assert_allclose(network(mixture, RATE_HZ), mixture, atol=1e-5)
    with pytest.raises(errors.UserError, match="cannot stream"):
        network.stream()
    with pytest.raises(errors.UserError, match="cannot stream"):
        bench.measure(network, 1.0)


def test_a_weaker_extraction_leaves_some_of_the_mixture(causal):
    mixture, rate = noise(1.2, 8000), 8000
    voice = causal(mixture, rate)
    np.testing.assert_allclose(causal(mixture, rate, strength=0.0), mixture, atol=1e-7)
    half = causal(mixture, rate, strength=0.5)
    np.testing.assert_allclose(half, (voice + mixture) / 2, atol=1e-6)


def test_the_cue_of_several_recordings_is_their_mean(causal):
    ones = [noise(1.5, seed=seed) for seed in (1, 2)]
    alone = np.concatenate([causal.cue(one, RATE_HZ) for one in ones])
    mean = alone.mean(0)
    expected = mean / np.sqrt(np.mean(mean**2))
    np.testing.assert_allclose(causal.cue(ones, RATE_HZ)[0], expected, atol=1e-4)
    mixture, cue = noise(1.2), causal.cue(ones, RATE_HZ)
    found = causal.extract(mixture, RATE_HZ, cue)
    np.testing.assert_allclose(causal(mixture, RATE_HZ, ones), found, atol=1e-6)


def test_a_network_that_always_had_an_enrolment_says_so(tmp_path, caplog):
    """It is evaluated with enrolments alone."""
    network = make(tmp_path, **{"cue.dropout": 0.0})
    network.cue(noise(1.0), RATE_HZ)
    assert not caplog.text
    network.cue(None)
    assert "never without an enrolment" in caplog.text
    config = quickstart.get_config("debug")
    assert list(modes.table(config)) == ["given", "noisy", "none", "self"]
    config.cue.dropout = 0.0
    assert list(modes.table(config)) == ["given", "noisy"]


def test_a_stream_takes_what_microphones_give(causal):
    """Integers of 16 bits are scaled as in a file; a column is a channel."""
    whole = np.int16(32768 * noise(1.0))
    expected = causal(whole, RATE_HZ)
    for chunk in (whole, whole[:, None], whole[:, None] / np.float32(32768)):
        stream = causal.stream()
        found = np.concatenate([stream(chunk), stream.flush()])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_stream_that_is_over_takes_no_more(causal):
    """It said how long it was: what came now would be a delay late. Nothing more comes out."""
    stream, sound = causal.stream(), noise(0.5)
    found = np.concatenate([stream(sound), stream.flush()])
    assert len(found) == len(sound)
    with pytest.raises(errors.UserError, match=r"This stream is over: .*flush.*Begin another"):
        stream(sound)
    assert len(stream(np.zeros(0, np.float32))) == len(stream.flush()) == 0
    again = causal.stream()
    np.testing.assert_array_equal(np.concatenate([again(sound), again.flush()]), found)


def test_the_bench_counts_every_hop_against_real_time(causal):
    latency, hop, factor, memory = bench.measure(causal, 0.8)
    assert "32 ms, a hop is 16 ms" in latency
    assert "(50 hops, " in hop
    assert 0 < float(factor.split()[-1]) < 100
    assert " MiB before, " in memory


def test_bad_input_is_one_message(causal, tmp_path, caplog):
    for enrolment, message in (
        (noise(0.9), r"enrolment: 0\.90 s are too short"),
        (np.zeros(20000, np.float32), "enrolment: silent"),
        (np.pad(noise(1.0), (RATE_HZ, 0)), "silent for 1 s, .* by the first 1 s: cut"),
        ([], "enrolment: a list without any"),
        (np.full(20000, np.nan, np.float32), "NaN"),
    ):
        with pytest.raises(io.AudioError, match=message):
            causal(noise(1.0), RATE_HZ, enrolment)
    causal.cue(np.sign(noise(1.5)), RATE_HZ)
    assert "clipped" in caplog.text
    with pytest.raises(io.AudioError, match="empty"):
        causal(np.zeros(0, np.float32), RATE_HZ)
    for wrong in (causal.stream, lambda **how: causal(noise(1.0), RATE_HZ, **how)):
        with pytest.raises(errors.UserError, match=r"strength=1\.5 is not from 0"):
            wrong(strength=1.5)
    stream = causal.stream()
    with pytest.raises(io.AudioError, match="NaN"):
        stream(np.full(5, np.nan, np.float32))
    assert len(stream(noise(0.2))) > 0  # it goes on
    found = commands.message(
        "separation.enhance", "--workdir", tmp_path, "--out", tmp_path, "a.wav"
    )
    assert "separation.enhance: " in found
    options = ("--workdir", tmp_path, "--out", tmp_path, "--strength=2", "a.wav")
    assert "--strength=2 is not from 0 to 1." in commands.message("separation.enhance", *options)
    workdir.save_config(tmp_path / "asr", "asr", asr_settings.default_config())
    options = ("--workdir", tmp_path / "asr", "--out", tmp_path / "out", "a.wav")
    assert "belongs to the task 'asr'" in commands.message("separation.enhance", *options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(errors.UserError, match="both become"):
        enhance.outputs(["a/x.wav", "b/x.mp3"], tmp_path)


def test_what_a_voice_is_known_by_is_not_written_over(causal, tmp_path, command, monkeypatch):
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "ann.wav", tmp_path / "in" / "ann.wav"):
        io.write_wav(path, noise(1.5), RATE_HZ)
    kept = (tmp_path / "ann.wav").read_bytes()
    monkeypatch.setattr(enhancer, "load", lambda *_, **__: causal)
    words = [f"--enroll={tmp_path / 'ann.wav'}", f"--out={tmp_path}"]
    for name in ("in/ann.wav", "ann.wav"):
        monkeypatch.setattr("sys.argv", ["enhance", "--workdir=x", *words, str(tmp_path / name)])
        with pytest.raises(SystemExit, match="would be replaced by what is made of it"):
            enhance.main()
    assert (tmp_path / "ann.wav").read_bytes() == kept


def test_the_command_names_bad_files_and_goes_on(
    causal, tmp_path, command, monkeypatch, capsys, caplog
):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    io.write_wav(tmp_path / "good.wav", noise(1.0, 8000), 8000)
    monkeypatch.setattr(enhancer, "load", lambda *_, **__: causal)
    names = [str(tmp_path / name) for name in ("bad.wav", "good.wav")]
    out = tmp_path / "out"
    options = ["--workdir=x", f"--out={out}", "--stream", "--strength=0.9"]
    monkeypatch.setattr("sys.argv", ["enhance", *options, *names])
    with pytest.raises(SystemExit) as stopped:
        enhance.main()
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert said.out == f"{out / 'good.wav'}\n"
    # A log that an earlier test has opened may be among them.
    bad, speed = (line for line in said.err.splitlines() if " Hz, and the network" not in line)
    assert "bad.wav" in bad
    assert speed.startswith("Algorithmic latency 32 ms; real-time factor ")
    assert "good.wav: 8000 Hz, and the network was trained at 16000 Hz" in caplog.text
    assert [path.name for path in out.iterdir()] == ["good.wav"]
    assert io.probe(out / "good.wav") == io.AudioInfo(8000, 1, 8000)
