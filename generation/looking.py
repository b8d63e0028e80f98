"""What is seen of a face: a vector near that of the person's voice."""

import flax.linen as nn
from jaxtyping import Array, Float

from generation import voice, voice2face


class FaceEncoder(nn.Module):
    """A picture of 64 x 64 to a vector of length 1: the face network of Wen et al. (2019).

    It learns (`matcher.contrast`) to lie nearest to what is heard of the same person. That is a
    vector of the same size already, or with `project` a linear layer of it learns with the face.
    """

    size: int
    widths: tuple[int, ...]
    project: bool

    def setup(self) -> None:
        self.look = voice2face.FaceNet(self.widths, self.size)
        if self.project:
            self.hear = nn.Dense(self.size)

    def face(self, pictures: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Of pictures in [-1, 1]."""
        return voice.unit(self.look(pictures))

    def __call__(
        self, pictures: Float[Array, "b h w c"], heard: Float[Array, "b n"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """The vectors of faces and of voices (`hearing.Hearing`)."""
        return self.face(pictures), voice.unit(self.hear(heard) if self.project else heard)
