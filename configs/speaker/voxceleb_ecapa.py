"""ECAPA-TDNN on VoxCeleb2-dev: wespeaker's recipe v2 and its large-margin stage.

Desplanques et al., "ECAPA-TDNN", Interspeech 2020, with 512 channels (wespeaker's
ECAPA_TDNN_GLOB_c512); for 1024 add --config.model.channels=1024.
Data, command, arguments, hardware and deviations from the recipe: as in voxceleb_resnet34.py. Error
rates: not run here.
"""

from ml_collections import ConfigDict

from configs.speaker import voxceleb_resnet34


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` as in voxceleb_resnet34.py."""
    model = {"kind": "ecapa", "channels": 512, "pooled_channels": 1536, "embedding_size": 192}
    return voxceleb_resnet34.recipe(argument, model)
