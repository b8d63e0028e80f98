"""x-vector (TDNN, 512 channels) on VoxCeleb2-dev: wespeaker's recipe v2 and its large-margin stage.

Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018, trained as
wespeaker's XVEC-TSTP-512: 4.61 million parameters before the classes.
Data, command, arguments, hardware and deviations from the recipe: as in voxceleb_resnet34.py. Error
rates: not run here.
"""

from ml_collections import ConfigDict

from configs.speaker import voxceleb_resnet34


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` as in voxceleb_resnet34.py."""
    model = {"kind": "xvector", "channels": 512, "pooled_channels": 1500, "embedding_size": 512}
    model["padding"] = "valid"
    return voxceleb_resnet34.recipe(argument, model)
