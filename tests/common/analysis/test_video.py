"""Films: every frame, in its order, in both formats."""

import av
import numpy as np
import PIL.Image
import pytest

from common.analysis import video


def test_both_films_have_all_frames(tmp_path):
    frames = [np.full((41, 61, 3), shade, np.uint8) for shade in (20, 120, 220)]
    gif, mp4 = video.write(frames, tmp_path / "film", fps=2.0)
    assert gif.name == "film.gif"
    with PIL.Image.open(gif) as found:
        assert found.n_frames == 3
        shades = []
        for k in range(3):
            found.seek(k)
            shades.append(int(np.asarray(found.convert("L"))[20, 30]))
            assert found.info["duration"] == (1500 if k == 2 else 500)
    np.testing.assert_allclose(shades, (20, 120, 220), atol=1)
    with av.open(str(mp4)) as found:
        stream = found.streams.video[0]
        assert (stream.width, stream.height) == (60, 40)  # H.264 has no odd sizes
        decoded = [x.to_ndarray(format="rgb24").mean() for x in found.decode(stream)]
        assert stream.average_rate == 2
    np.testing.assert_allclose(decoded, (20, 120, 220, 220, 220), atol=4)


def test_frames_of_several_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of one size"):
        video.write(
            [np.zeros((4, 4, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)], tmp_path, fps=1.0
        )
