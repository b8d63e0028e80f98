"""Settings that a network never reads are refused, or said where a run has begun with them."""

import importlib
import logging

import pytest

from common import errors, workdir
from configs.separation import audiovisual_quickstart, lite, quickstart, visualvoice
from separation import task, unread
from tests.separation.test_configs import NAMES


def made(config, folder, **changes):
    config.update_from_flattened_dict(changes)
    return task.make_task(workdir.freeze(config), folder)


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (visualvoice, {"cue.dropout": 0.5}, r"config\.cue\.dropout=0\.5"),
        (visualvoice, {"cue.workdir": "runs/speaker"}, r"config\.cue\.workdir='runs/speaker'"),
        (visualvoice, {"sight.lips": True}, r"config\.sight\.lips=True"),
        (visualvoice, {"sight.face": True}, r"config\.sight\.face=True"),
        (visualvoice, {"sight.dropout": 0.5}, r"config\.sight\.dropout=0\.5"),
        (visualvoice, {"mixing.enrolment_snr_db": (0.0, 5.0)}, r"mixing\.enrolment_snr_db=\(0\.0"),
        (visualvoice, {"loss.si_sdr": 1.0}, r"config\.loss\.si_sdr=1\.0"),
        (visualvoice, {"loss.speaker": 0.0}, r"config\.loss\.speaker=0\.0"),
        (visualvoice, {"suppression.beta": 0.5}, r"config\.suppression\.beta"),
        (visualvoice, {"model.causal.features": 8}, r"config\.model\.causal\.features=8"),
        (
            visualvoice,
            {"model.visualvoice.face": False, "sight.pictures": 5},
            r"config\.sight\.pictures=5",
        ),
        (quickstart, {"model.visualvoice.lip": False}, r"config\.model\.visualvoice\.lip=False"),
        (quickstart, {"loss.visualvoice.margin": 1.0}, r"loss\.visualvoice\.margin=1\.0"),
        (quickstart, {"model.lite.alone": 0.5}, r"config\.model\.lite\.alone=0\.5"),
        (quickstart, {"sight.dropout": 0.5}, r"config\.sight\.dropout=0\.5"),
        (lite, {"sight.dropout": 0.5}, r"config\.sight\.dropout=0\.5"),
        (lite, {"loss.magnitude": 0.5}, r"config\.loss\.magnitude=0\.5"),
        (lite, {"model.visualvoice.remat": True}, r"config\.model\.visualvoice\.remat=True"),
    ],
)
def test_what_is_never_read_is_refused(config, changes, named, tmp_path):
    with pytest.raises(errors.UserError, match=f"{named}.*never read by this network"):
        made(config.get_config("debug"), tmp_path, **changes)


def test_all_of_them_are_one_message_with_their_defaults(tmp_path):
    changes = {"cue.dropout": 0.5, "cue.size": 7, "sight.face": True}
    with pytest.raises(errors.UserError) as said:
        made(visualvoice.get_config("debug"), tmp_path, **changes)
    message = str(said.value)
    for part in (
        "cue.dropout=0.5",
        "cue.size=7",
        "(cue.dropout=0.1, cue.size=128, sight.face=False)",
        "visualvoice.lip and .face",
    ):
        assert part in message
    assert message.count("never read") == 1


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (visualvoice, {"sight.pictures": 5, "mixing.snr_db": (-5.0, 5.0)}),
        (quickstart, {"model.kind": "quality"}),  # with sizes of all networks of an enrolment
        (quickstart, {"model.kind": "voicefilter", "cue.dropout": 0.2}),
        (audiovisual_quickstart, {"sight.lips": False, "sight.pictures": 3}),
        (audiovisual_quickstart, {"sight.lips": False, "sight.face": False}),
        (lite, {"loss.speaker": 1.0, "cue.size": 24, "suppression.beta": 0.5}),
    ],
)
def test_what_is_read_is_taken(config, changes, tmp_path):
    made(config.get_config("debug"), tmp_path, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_the_experiments_have_no_such_setting(name):
    arguments = {
        "visualvoice": ("small", "lip", "face", "heard", "enhance"),
        "audiovisual_quickstart": ("heard",),
    }
    for argument in ("", "debug", *arguments.get(name, ())):
        config = importlib.import_module(f"configs.separation.{name}").get_config(argument)
        assert unread.changed(workdir.freeze(config)) == {}, argument


def test_a_run_that_has_begun_goes_on(tmp_path, caplog):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "separation"):
        made(visualvoice.get_config("debug"), tmp_path, **{"cue.dropout": 0.5})
    assert "config.cue.dropout=0.5: never read by this network" in caplog.text
