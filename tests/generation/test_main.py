"""`python -m generation.main` and `.sample`, as a user starts them."""

import io as bytes_io
import json
import shutil
import signal
import subprocess

import av
import numpy as np
import PIL.Image
import pytest

from common.audio import io
from tests import commands
from tests.generation import inception_file, layouts

CONFIGS = "--config=configs/generation/"


def fingerprint(folder, step):
    """Of all arrays of a checkpoint."""
    path = folder / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["fingerprint"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GAN trained in one go, and a judge; what they said."""
    folder = tmp_path_factory.mktemp("runs")
    said = {
        name: commands.run(
            "generation.main", f"{CONFIGS}{name}.py:debug", f"--workdir={folder / name}"
        )
        for name in ("quickstart", "matcher")
    }
    for i, pitch in enumerate((110, 200)):
        time = np.arange(20000) / 8000
        buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
        io.write_wav(folder / f"{i}.wav", (0.1 * buzz).astype(np.float32), 8000)
    io.write_wav(folder / "silent.wav", np.zeros(20000, np.float32), 8000)
    return folder, said


@pytest.mark.slow
def test_it_trains_shows_and_resumes(runs, tmp_path):
    folder, said = runs
    whole = folder / "quickstart"
    assert "figures say nothing about people" in said["quickstart"].stdout
    assert [path.name for path in sorted((whole / "samples").iterdir())] == [
        "dev-faces-0000015.png",
        "dev-faces-0000030.png",
        "dev-faces.gif",
        "dev-faces.mp4",
    ]
    assert f"film: {whole / 'samples' / 'dev-faces.mp4'}" in said["quickstart"].stdout
    assert list((whole / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    names = {"discriminator_loss", "generator_loss", "learning_rate_generator", "r1"}
    assert names <= set(train[-1])
    assert None not in train[-1].values()
    commands.run(
        "generation.main",
        *(f"{CONFIGS}quickstart.py:debug", f"--workdir={tmp_path}", "--config.total_steps=15"),
    )
    resumed = commands.run(
        "generation.main", f"{CONFIGS}quickstart.py:debug", f"--workdir={tmp_path}"
    )
    assert "Resumed at step 15" in resumed.stderr
    assert fingerprint(whole, 30) == fingerprint(tmp_path, 30)
    refused = commands.message(
        "generation.main",
        *(f"{CONFIGS}quickstart.py:debug", f"--workdir={tmp_path}", "--config.picture.size=16"),
    )
    assert "makes pictures of 32 x 32 x 3" in refused


@pytest.mark.slow
def test_state_beside_the_parameters_resumes_to_the_bit(tmp_path):
    """BEGAN: running statistics, and its balance."""
    config = f"{CONFIGS}asariri.py:began-debug"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    commands.run("generation.main", config, f"--workdir={whole}")
    commands.run("generation.main", config, f"--workdir={parts}", "--config.total_steps=15")
    resumed = commands.run("generation.main", config, f"--workdir={parts}")
    assert "Resumed at step 15" in resumed.stderr
    assert fingerprint(whole, 30) == fingerprint(parts, 30)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    assert {"balance", "convergence", "real_loss"} <= set(last)
    assert None not in last.values()
    io.write_wav(tmp_path / "a.wav", np.sin(np.arange(9000.0)).astype(np.float32), 8000)
    files = f"--voice={tmp_path / 'a.wav'}", f"--out={tmp_path / 'a.png'}"
    commands.run("generation.sample", f"--workdir={whole}", *files, "--n=2")
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.size == (2 * 130 - 2, 128)


@pytest.mark.slow
def test_it_is_evaluated_by_a_net_of_its_own_training(runs):
    folder, said = runs
    assert "dev real faces: 4 people, %: 1:2 " in said["matcher"].stdout
    found = commands.run(
        "generation.main",
        *(f"--workdir={folder / 'quickstart'}", "--mode=evaluate"),
        f"--config.judge={folder / 'matcher'}",
    )
    assert "dev voice to made face: 4 people" in found.stdout
    assert "ceiling, real faces: 4 people" in found.stdout
    numbers = json.loads((folder / "quickstart" / "results" / "dev.json").read_text())
    alone = json.loads((folder / "matcher" / "results" / "dev.json").read_text())
    assert 0 <= numbers["match_2"] <= 1
    # The probe is another recording than the one that the judge was evaluated on.
    assert numbers["real_match_2"] == pytest.approx(alone["match_2"], abs=0.35)
    assert "distances between sets of faces take 8 people" in found.stdout
    refused = commands.message(
        "generation.main",
        *(f"--workdir={folder / 'quickstart'}", "--mode=evaluate"),
        f"--config.judge={folder / 'quickstart'}",
    )
    assert "has trained a network of kind 'gan'" in refused


@pytest.mark.slow
def test_more_people_are_measured_as_a_set_and_by_gender(runs, tmp_path):
    folder, _ = runs
    shutil.copytree(folder / "quickstart", tmp_path / "run")
    found = commands.run(
        "generation.main",
        *(f"--workdir={tmp_path / 'run'}", "--mode=evaluate", "--config.data.voices=24"),
        *(f"--config.judge={folder / 'matcher'}", "--config.data.eval_voices=16"),
        "--config.data.eval_hours=0.03",
    )
    assert "the judge's last hidden layer (32), 16 faces of 8 people: " in found.stdout
    assert "dev ceiling, same gender: 16 people" in found.stdout
    assert "by a regression on 24 training people's, %: made " in found.stdout
    numbers = json.loads((tmp_path / "run" / "results" / "dev.json").read_text())
    names = {"frechet", "kernel", "precision", "recall", "density", "coverage", "gender_accuracy"}
    names = {f"{prefix}{name}" for prefix in ("", "real_") for name in names}
    names |= {"cosine", "real_cosine", "diversity", "spread", "same_gender_match_2"}
    assert names <= set(numbers)
    assert None not in [numbers[name] for name in names]
    # A network of 30 steps draws no faces, and hardly two different ones.
    assert numbers["kernel"] > 0
    assert numbers["diversity"] < 0.5


@pytest.mark.slow
def test_fid_and_kid_by_the_weights_that_are_given(runs, tmp_path):
    folder, _ = runs
    shutil.copytree(folder / "quickstart", tmp_path / "run")
    weights = inception_file.write(tmp_path / "net.pth")
    found = commands.run(
        "generation.main",
        *(f"--workdir={tmp_path / 'run'}", "--mode=evaluate", f"--inception-weights={weights}"),
        *("--config.data.eval_voices=8", "--config.data.eval_turns=1"),
    )
    assert ": 8 made pictures against as many real ones, brought to 299 x 299" in found.stdout
    assert "subsets of 4 pictures, deviation " in found.stdout
    numbers = json.loads((tmp_path / "run" / "results" / "dev.json").read_text())
    assert numbers["inception_weights"] == str(weights)
    names = {"fid", "fid_of_halves", "real_fid_of_halves", "kid", "kid_deviation", "real_kid"}
    assert names <= set(numbers)
    assert None not in [numbers[name] for name in names]
    # What a network of 30 steps draws is unlike any face.
    assert numbers["fid_of_halves"] > numbers["real_fid_of_halves"]
    evaluate = f"--workdir={tmp_path / 'run'}", "--mode=evaluate"
    refused = commands.message(
        "generation.main", *evaluate, f"--inception_weights={tmp_path / 'run' / 'config.json'}"
    )
    assert "config.json is no file of torch.save" in refused
    refused = commands.message("generation.main", evaluate[0], f"--inception_weights={weights}")
    assert "--inception_weights is a flag of --mode=evaluate alone" in refused


@pytest.mark.slow
def test_it_draws_faces_of_recordings(runs, tmp_path):
    folder, _ = runs
    options = (f"--workdir={folder / 'quickstart'}", f"--voice={folder / '0.wav'}")
    commands.run("generation.sample", *options, f"--out={tmp_path / 'a.png'}", "--n=3")
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * 130 - 2, 128)
    silent = f"--voice={folder / 'silent.wav'}"
    some = commands.run(
        "generation.sample", *options, silent, f"--out={tmp_path / 'c.png'}", code=1
    )
    assert "left out: " in some.stderr
    assert "silent.wav: is silent" in some.stderr
    assert "1 of 2 voices are in " in some.stderr
    with PIL.Image.open(tmp_path / "c.png") as image:
        assert image.size == (10 * 130 - 2, 128)
    ends = [str(folder / f"{i}.wav") for i in range(2)]
    film = (f"--out={tmp_path / 'film.mp4'}", "--frames=5")
    commands.run("generation.sample", options[0], "--interpolate", *ends, *film)
    with av.open(str(tmp_path / "film.mp4")) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert (len(frames), frames[0].shape) == (5 + 12, (128, 128, 3))  # the last stands for 1 s

    def refused(*options):
        return commands.message("generation.sample", f"--workdir={folder / 'quickstart'}", *options)

    out = f"--out={tmp_path / 'b.png'}"
    assert "is silent" in refused(f"--voice={folder / 'silent.wav'}", out)
    several = [f"--voice={folder / name}" for name in ("silent.wav", "none.wav")]
    assert "none of the 2 voices can be heard" in refused(*several, out)
    assert "none.wav" in refused(f"--voice={folder / 'none.wav'}", out)
    assert "ends in .mp4" in refused("--interpolate", *ends, out)
    assert "1 at least" in refused(f"--voice={ends[0]}", out, "--n=0")
    assert "makes no faces" in commands.message(
        "generation.sample", f"--workdir={folder / 'matcher'}", f"--voice={ends[0]}", out
    )
    assert not (tmp_path / "b.png").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_size_is_said_by_every_command(runs, tmp_path):
    """config.json was changed by hand."""
    folder, _ = runs
    run = tmp_path / "run"
    shutil.copytree(folder / "quickstart", run)
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["picture"]["size"] = 16
    (run / "config.json").write_text(json.dumps(saved))
    voice = str(folder / "0.wav")
    for module, *options in (
        ("generation.sample", f"--voice={voice}", f"--out={tmp_path / 'a.png'}"),
        ("generation.live", f"--input={voice}", f"--out={tmp_path / 'a.png'}"),
        ("generation.serve", "--port=0"),
        ("generation.main", "--mode=evaluate"),
        ("generation.main",),
    ):
        found = commands.message(module, f"--workdir={run}", *options)
        assert "makes pictures of 32 x 32 x 3" in found
        assert "config.json" in found
    assert not (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_stop(runs):
    pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
    import httpx2

    folder, _ = runs
    given = f"--workdir={folder / 'quickstart'}", "--port=0"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with commands.start("generation.serve", *given, **pipes) as process:
        try:
            url = process.stdout.readline().strip()
            voice = (folder / "0.wav").read_bytes()
            answer = httpx2.post(
                f"{url}faces", files={"file": voice}, data={"count": 2}, timeout=60
            )
            with PIL.Image.open(bytes_io.BytesIO(answer.content)) as image:
                assert image.size == (2 * 130 - 2, 128)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.rstrip().endswith("Stopped.")


@pytest.mark.slow
def test_python_draws_what_the_command_draws(runs):
    from generation import load

    folder, _ = runs
    faces = load(folder / "quickstart")
    assert faces.size == (32, 32, 3)
    four, two = (faces(folder / "0.wav", count=n, seed=1) for n in (4, 2))
    np.testing.assert_array_equal(four[:2], two)
    assert (four[0] != four[1]).any()
    audio = io.load_audio(folder / "0.wav", sample_rate_hz=16000)
    np.testing.assert_array_equal(faces(audio, count=2, seed=1), two)
    way = faces.between(folder / "0.wav", folder / "1.wav", frames=3, seed=1)
    np.testing.assert_array_equal(way[0], two[0])
    other = faces(folder / "1.wav", seed=1)
    np.testing.assert_array_equal(way[-1], other[0])
    assert (other[0] != two[0]).any()


@pytest.mark.slow
def test_own_folders_are_trained_on_and_evaluated_where_they_have_moved(tmp_path):
    """The seed's layout by settings alone; size and colour come from the folder's name."""
    root, run = layouts.asariri(tmp_path / "data", faces="images_bw_28x28"), tmp_path / "run"
    (root / "images_bw_28x28" / "ann" / "0.jpeg").write_bytes(b"text")
    said = commands.run(
        "generation.main",
        *(f"{CONFIGS}quickstart.py:debug", f"--workdir={run}", "--config.total_steps=5"),
        *("--config.data.kind=folder", f"--config.data.root={root}", "--config.data.pool=audio"),
        *("--config.data.split_by=person", "--config.data.max_bad_share=0.3"),
        *("--config.faces.kind=folder", f"--config.faces.root={root / 'images_bw_28x28'}"),
        *("--config.picture.size=0", "--config.picture.channels=0", "--config.voice.kind=mfcc"),
    )
    assert "1 bad picture" in said.stderr
    assert "synthetic" not in said.stdout
    saved = json.loads((run / "config.json").read_text())["config"]["picture"]
    assert saved == {"size": 28, "channels": 1}
    moved = root.rename(tmp_path / "moved")
    options = (f"--workdir={run}", f"--config.data.root={moved}", "--config.data.eval=test")
    faces = f"--config.faces.root={moved / 'images_bw_28x28'}"
    commands.run("generation.main", *options, faces, "--mode=evaluate")
    assert (run / "results" / "test.json").is_file()
    refused = commands.message("generation.main", *options[:2], "--mode=evaluate")
    assert "images_bw_28x28 cannot be read" in refused
    from generation import load

    drawn = load(run)(moved / "audio" / "ann" / "0.wav", count=2)
    assert drawn.shape == (2, 28, 28, 1)


@pytest.mark.slow
def test_pictures_with_classes_are_trained_on_without_a_voice(tmp_path):
    layouts.mnist(tmp_path / "data")
    run = tmp_path / "run"
    said = commands.run(
        "generation.main",
        *(f"{CONFIGS}quickstart.py:debug", f"--workdir={run}", "--config.total_steps=5"),
        *("--config.data.kind=none", "--config.faces.kind=mnist", "--config.voice.kind=class"),
        *(f"--config.faces.root={tmp_path / 'data'}", "--config.data.eval=test"),
        *("--config.picture.size=0", "--config.picture.channels=0"),
    )
    assert f"generation.sample --workdir={run} --voice=0 --out" in said.stdout
    with PIL.Image.open(run / "samples" / "test-faces-0000005.png") as image:
        # Four of the ten digits in columns, the real one and two made ones, doubled.
        assert image.size == (4 * 58 - 2, 3 * 58 - 2)
    options = (f"--workdir={run}", f"--out={tmp_path / 'a.png'}", "--n=3")
    commands.run("generation.sample", *options, "--voice=7", "--voice=4")
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * 114 - 2, 2 * 114 - 2)
    refused = commands.message("generation.sample", *options, "--voice=a.wav")
    assert "takes one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not 'a.wav'" in refused


@pytest.mark.slow
def test_voices_are_made_of_faces(runs, tmp_path):
    folder, _ = runs
    run, face = tmp_path / "run", tmp_path / "ann.png"
    layouts.write_face(face, 0, 0)
    said = commands.run("generation.main", f"{CONFIGS}face2voice.py:debug", f"--workdir={run}")
    assert f"generation.sample --workdir={run} --face=face.jpg --out=voice.wav" in said.stdout
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        "dev-voices-0000015.png",
        "dev-voices-0000030.png",
        "dev-voices.gif",
        "dev-voices.mp4",
    ]
    options = (f"--workdir={run}", f"--face={face}", f"--out={tmp_path / 'voice.wav'}")
    commands.run("generation.sample", *options, "--n=2", "--seed=1")
    sounds = [io.load_audio(tmp_path / f"voice-{i}.wav", sample_rate_hz=16000) for i in (1, 2)]
    # 36 frames: 35 hops of 10 ms and a window of 32.
    assert [len(sound) for sound in sounds] == [35 * 160 + 512] * 2
    assert all(1e-3 < np.sqrt(np.mean(np.square(sound))) < 0.5 for sound in sounds)
    assert (sounds[0] != sounds[1]).any()
    from generation import load

    maker = load(run)
    made = maker.voice(face, n=1, seed=1)
    np.testing.assert_allclose(made[0], sounds[0], atol=1 / 32768)  # 16 bits
    np.testing.assert_array_equal(maker.voice(face.read_bytes(), 1, 1), made)

    def refused(*options):
        return commands.message("generation.sample", *options)

    out = f"--out={tmp_path / 'a.png'}"
    assert "makes voices of faces, and no faces" in refused(
        options[0], f"--voice={folder / '0.wav'}", out
    )
    other = f"--workdir={folder / 'quickstart'}"
    assert "kind 'gan', which makes no voices" in refused(other, *options[1:])
    assert "ends in .wav" in refused(*options[:2], out)
    (tmp_path / "text.jpg").write_text("no picture")
    assert "text.jpg: this is no picture" in refused(
        options[0], f"--face={tmp_path / 'text.jpg'}", options[2]
    )
    evaluated = commands.run(
        "generation.main",
        *(f"--workdir={run}", "--mode=evaluate", f"--config.judge={folder / 'matcher'}"),
    )
    assert "dev face to made voice: 4 people" in evaluated.stdout
    assert "ceiling, real voices: 4 people" in evaluated.stdout
    refusal = commands.message(
        "generation.main",
        *(f"{CONFIGS}face2voice.py:debug", f"--workdir={run}", "--config.model.frames=40"),
    )
    assert "makes stretches of 36 x 24 (frames, bands)" in refusal
