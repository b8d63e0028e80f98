"""VisualVoice as a whole: mixtures and what is seen of their speakers -> their voices."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.nn import masking
from separation.visualvoice import faces, lips, spectra, unet
from separation.visualvoice.config import VIDEO_FRAME, VisualVoiceConfig


class VisualVoice(nn.Module):
    """The networks of lips, faces and masks, and for training alone that of voices.

    s is the number of people whose voices are wanted, any; with context, or with no cue at all,
    it is 2. Sizes of the pictures are free; published are 88 x 88 mouths and 224 x 224 faces.
    """

    config: VisualVoiceConfig

    def setup(self) -> None:
        config = self.config
        self.lip_net = lips.LipNet(config) if config.lip else None
        self.face_net = faces.FaceNet(config) if config.face else None
        self.unet = unet.UNet(config)
        self.voice_net = faces.ResNet18(config)

    def lips(
        self,
        mouth: Float[Array, "b s v h w"],
        present: Bool[Array, "b s v"],
        frames: Int[Array, "b"],
        *,
        train: bool,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "b s v d"]:
        """See `lips.LipNet`. `frames` are those of the STFT; n is b * s."""
        b, s, v = mouth.shape[:3]
        steps = jnp.repeat(-(-frames // VIDEO_FRAME), s)
        own = masking.float_mask(steps, v)
        present = present.reshape(b * s, v) & (own > 0)
        mouth = mouth.reshape(b * s, *mouth.shape[2:])
        found = self.lip_net(mouth, present, own, train=train, dropout_keys=dropout_keys)
        return found.reshape(b, s, v, -1)

    def faces(
        self, faces: Float[Array, "b s k p q 3"], present: Bool[Array, "b s k"], *, train: bool
    ) -> Float[Array, "b s d"]:
        """See `faces.FaceNet`."""
        b, s = faces.shape[:2]
        pictures, present = faces.reshape(b * s, *faces.shape[2:]), present.reshape(b * s, -1)
        return self.face_net(pictures, present, train=train).reshape(b, s, -1)

    def masks(
        self,
        spectrum: Float[Array, "b l f 2"],
        frames: Int[Array, "b"],
        lip: Float[Array, "b s v d"] | None,
        face: Float[Array, "b s e"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b s l f 2"]:
        """See `unet.UNet`; `lip` and `face` are None in networks without them."""
        b, steps = spectrum.shape[0], -(-spectrum.shape[1] // VIDEO_FRAME)
        cues = []
        if face is not None:
            cues.append(jnp.broadcast_to(face[:, :, None], (*face.shape[:2], steps, face.shape[2])))
        if lip is not None:
            cues.append(unet.fitted(lip, steps))
        if not cues:
            cues = [jnp.zeros((b, self.config.together, steps, 0))]
        return self.unet(spectrum, frames, jnp.concatenate(cues, axis=-1), train=train)

    def voice(
        self, spectrum: Float[Array, "b l f 2"], frames: Int[Array, "b"], *, train: bool
    ) -> Float[Array, "b e"]:
        """The embedding of who is heard; trained to lie near that of the face."""
        return self.voice_net(spectrum, frames, train=train)

    def __call__(
        self,
        mixture: Float[Array, "b t"],
        lengths: Int[Array, "b"],
        mouth: Float[Array, "b s v h w"] | None = None,
        mouth_present: Bool[Array, "b s v"] | None = None,
        faces: Float[Array, "b s k p q 3"] | None = None,
        face_present: Bool[Array, "b s k"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b s t"]:
        """Each person's voice, as it is in the mixture; 0 beyond the lengths.

        The mixture may have any level: the networks see it at that of training, and nothing but
        the mixture says how loud the voices come out. Pictures that are not present may be
        anything; rows of length 0 give 0.
        """
        config = self.config
        frames = spectra.num_frames(lengths, config)
        mixture = masking.zero_padding(mixture[:, :, None], lengths)[:, :, 0]
        # Of a voice at that level and what it is mixed with, independent of it.
        level = spectra.LEVEL * (1 + config.other_weight**2) ** 0.5 / config.mixture_share
        spectrum = spectra.analysed(spectra.at_level(mixture, lengths, level), frames, config)
        seen = spectra.parts(spectrum)
        lip = self.lips(mouth, mouth_present, frames, train=train) if config.lip else None
        face = self.faces(faces, face_present, train=train) if config.face else None
        masks = self.masks(seen, frames, lip, face, train=train)
        if self.is_initializing():
            self.voice(seen, frames, train=train)
        s = masks.shape[1]
        original = spectra.analysed(mixture, frames, config) / config.mixture_share
        voices = [
            spectra.synthesised(
                spectra.masked(masks[:, i], original), frames, lengths, config, mixture.shape[1]
            )
            for i in range(s)
        ]
        return jnp.stack(voices, axis=1)
