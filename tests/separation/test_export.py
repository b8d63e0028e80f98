"""`separation.export`: its file alone gives what the network of the work directory gives."""

import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from common import errors, parallel, trained
from common import export as common_export
from common.audio import io
from separation import artefact, enhancer, export, exported
from tests import commands
from tests.separation import test_enhancer, test_voice
from tests.separation.test_judges import speaker_folder  # noqa: F401 - a fixture

RATE_HZ, noise = test_enhancer.RATE_HZ, test_enhancer.noise
# What the head of `separation.export` tells those to do who have only jax.
ALONE = """
import json, sys
import jax, numpy
file = numpy.load(sys.argv[1])
about = json.loads(str(file["about"]))
step = jax.jit(jax.export.deserialize(bytearray(file["programs/step"])).call)
weights = [file[name] for name in about["weights"]]
state = [file[name] for name in about["state"]]
mixture, parts = numpy.load(sys.argv[2]), []
for first in range(0, len(mixture), about["hop_size"]):
    chunk = mixture[None, first : first + about["hop_size"]]
    state, audio = step(weights, state, chunk)
    parts.append(audio[0])
numpy.save(sys.argv[3], numpy.concatenate(parts)[about["delay_samples"]:])
assert not [name for name in sys.modules if name.split(".")[0] in ("separation", "flax")]
"""


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    changes = {"model.causal.num_layers": 2, "model.causal.features": 16}
    return test_enhancer.make(tmp_path_factory.mktemp("causal"), **changes)


@pytest.fixture(scope="module")
def path(causal, tmp_path_factory):
    """The file that the command makes, with the voice of a recording."""
    folder = tmp_path_factory.mktemp("export")
    io.write_wav(folder / "ann.wav", noise(1.5, seed=1), RATE_HZ)
    with pytest.MonkeyPatch.context() as patch:
        for name in commands.WHOLE_PROCESS:
            patch.setattr(f"common.app.{name}", lambda: None)
        patch.setattr(enhancer, "load", lambda *_, **__: causal)
        words = [f"--workdir={folder}", f"--enroll={folder / 'ann.wav'}", "--platforms=cpu"]
        patch.setattr("sys.argv", ["export", *words])
        export.main()
    return folder / "export" / "step.jaxexport"


def test_its_streams_are_those_of_the_network(causal, path):
    """With an enrolment, with that of the file, with part of the mixture, and enrolling itself."""
    network, ann = exported(path), path.parent.parent / "ann.wav"
    assert network.latency_ms == causal.latency_ms
    mixture = noise(2.6)
    voices = []
    for theirs, ours in (
        ({"enrolment": noise(1.2, seed=4), "rate": RATE_HZ},) * 2,
        ({}, {"enrolment": ann}),
        ({"enrolment": ann, "strength": 0.7},) * 2,
    ):
        found, wanted = network.stream(**theirs), causal.stream(**ours)
        for first, end in ((0, 100), (100, 20000), (20000, len(mixture))):
            one, other = found(mixture[first:end]), wanted(mixture[first:end])
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.flush(), wanted.flush(), rtol=0, atol=1e-6)
        voices.append(one)
    assert np.abs(voices[0] - voices[1]).max() > 1e-4  # the enrolment counts
    with pytest.raises(errors.UserError, match="strength=2 is not"):
        network.stream(strength=2.0)


def test_a_stream_that_enrols_itself_gets_its_cue_by_the_programs_of_the_file(tmp_path):
    """By a mask that leaves most of what is heard, so that there is a voice to know."""
    network = test_enhancer.make(tmp_path, **{"data.enrolment_seconds": 1.5})
    params = dict(network.variables["params"])
    mask = dict(params["extractor"]["mask"])
    mask["bias"] = np.where(np.arange(len(mask["bias"])) < len(mask["bias"]) // 2, 1.5, 0.0)
    params["extractor"] = {**params["extractor"], "mask": jax.tree.map(np.float32, mask)}
    network._variables = {**network.variables, "params": params}
    again = artefact.Exported(export.artefact(network, network.cue(None), ("cpu",)))
    found, wanted = again.stream(self_enroll=True), network.stream(self_enroll=True)
    mixture = noise(3.0)
    one = np.concatenate([found(mixture), found.flush()])
    other = np.concatenate([wanted(mixture), wanted.flush()])
    assert found.enrolled_at == wanted.enrolled_at is not None
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_cues_of_a_speaker_network_go_into_the_file(tmp_path, speaker_folder):  # noqa: F811
    folder = test_voice.copied(speaker_folder, tmp_path / "speaker")
    task = test_voice.make_task(tmp_path, folder)
    variables, mesh = jax.jit(task.init)(jax.random.key(0)), parallel.make_mesh(jax.devices()[:1])
    network = enhancer.Enhancer(
        trained.Trained(tmp_path, task.config, task, mesh, variables, {"step": 0})
    )
    path, rate = tmp_path / "step.jaxexport", network.sample_rate_hz
    common_export.write(path, export.KIND, export.artefact(network, network.cue(None), ("cpu",)))
    shutil.rmtree(folder)
    mixture, voice = noise(1.0, rate), noise(1.5, rate, seed=3)
    found, wanted = exported(path).stream(voice, rate), network.stream(voice, rate)
    one, nobody = found(mixture), network.stream()(mixture)
    np.testing.assert_allclose(one, wanted(mixture), rtol=0, atol=1e-6)
    assert np.abs(one - nobody).max() > 1e-5


def test_the_file_runs_alone_in_another_process(causal, path, tmp_path):
    """Without this code, the work directory, and the enrolment."""
    hop = causal.extractor.hop_size
    mixture = noise(1.3)[: 75 * hop]
    np.save(tmp_path / "mixture.npy", mixture)
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    names = [script, path, tmp_path / "mixture.npy", tmp_path / "voice.npy"]
    subprocess.run([sys.executable, *map(str, names)], cwd=tmp_path, check=True, timeout=300)
    stream = causal.stream(path.parent.parent / "ann.wav")
    np.testing.assert_allclose(np.load(tmp_path / "voice.npy"), stream(mixture), rtol=0, atol=1e-6)
    for line in ALONE.splitlines()[4:8]:
        assert line.strip() in export.__doc__


def test_the_file_says_what_it_is(causal, path):
    about = exported(path).about
    assert about["sample_rate_hz"] == RATE_HZ
    assert about["hop_size"] == causal.extractor.hop_size
    assert about["delay_samples"] == causal.extractor.delay_samples
    state = jax.tree.leaves(causal.extractor.initial_state(1))
    assert about["state_shapes"] == [list(x.shape) for x in state]
    assert set(about["programs"]) == {"step", "block", "cue", "with_cue"}


def test_both_platforms_fit_into_one_file(causal):
    made = export.artefact(causal, causal.cue(None))
    assert {one.platforms for one in made.programs.values()} == {("cpu", "cuda")}
    assert not [name for name in made.about["weights"] if name not in made.arrays]


def test_what_cannot_be_exported_is_one_message(tmp_path, path):
    network = test_enhancer.make(tmp_path, **{"model.kind": "quality"})
    with pytest.raises(errors.UserError, match=r"sees all of a recording and cannot stream"):
        export.artefact(network, network.cue(None))
    for name in ("lips", "face"):
        network = test_enhancer.make(tmp_path, **{f"sight.{name}": True})
        with pytest.raises(errors.UserError, match="exports are of networks that only hear"):
            export.artefact(network, network.cue(None))
    with pytest.raises(errors.UserError, match=r"python -m separation\.export makes one"):
        exported(tmp_path / "step.jaxexport")
    (tmp_path / "step.jaxexport").write_bytes(pathlib.Path(path).read_bytes()[:5000])
    with pytest.raises(errors.UserError, match=r"step\.jaxexport is damaged, or not of"):
        exported(tmp_path / "step.jaxexport")
    options = ("--workdir", tmp_path / "none", "--out", tmp_path)
    assert "is a folder: name a file" in commands.message("separation.export", *options)
