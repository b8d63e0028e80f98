"""The application of `generation.serve`: which service goes with which network."""

from common.serve import settings as serve_settings
from generation import (
    face_service,
    maker,
    serving,
    voice_changer,
    voice_maker,
    voice_service,
    word_service,
)


def service(
    network: maker.FaceMaker | voice_maker.VoiceMaker | voice_changer.VoiceChanger,
    settings: serve_settings.Settings,
) -> serving.Service:
    """What serves the network of a work directory (`generation.load`). Raises UserError for one
    that hears no voices and makes none."""
    if isinstance(network, voice_changer.VoiceChanger):
        return word_service.WordService(network, settings)
    if isinstance(network, voice_maker.VoiceMaker):
        return voice_service.VoiceService(network, settings)
    return face_service.FaceService(network, settings)
