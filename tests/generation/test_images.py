"""Pictures that can be used and those that cannot."""

import contextlib
import io
import warnings

import numpy as np
import PIL.Image
import pytest

from generation import images


def encoded(pixels, form="png"):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def test_bad_pictures_are_one_message(tmp_path):
    rng = np.random.default_rng(0)
    good = encoded(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8), "jpeg")
    assert images.read(good).shape == (40, 30, 3)
    for content, words in {
        good[: len(good) // 2]: "no picture that can be read",
        b"text": "no picture that can be read .its format is not known, or its header is damaged.",
        encoded(np.zeros((40, 5, 3), np.uint8)): "5 x 40 pixels are too few, it takes 16 x 16",
    }.items():
        path = tmp_path / "face.jpeg"
        path.write_bytes(content)
        with pytest.raises(images.ImageError, match=f"face.jpeg: .*{words}"):
            images.read(path)
    with pytest.raises(images.ImageError, match="there is no such picture"):
        images.read(tmp_path / "none.png")


def test_a_picture_of_a_camera_that_was_turned_is_upright():
    """Whatever is wrong with what the camera says beside it, it is a picture or a message."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = 255
    file, how = io.BytesIO(), PIL.Image.Exif()
    how[0x0112] = 6  # to be shown turned clockwise by a quarter
    PIL.Image.fromarray(pixels).save(file, format="jpeg", exif=how)
    found = images.read(file.getvalue())
    assert found.shape == (48, 32, 3)
    assert found[:20].min() > 200
    assert found[-20:].max() < 50
    how[0x0100] = 9  # a width, which is then said to be text
    wrong = how.tobytes().replace(b"\x01\x00\x00\x04", b"\x01\x00\x00\x02")
    for form in ("jpeg", "png", "webp"):
        other = io.BytesIO()
        PIL.Image.fromarray(pixels).save(other, format=form, exif=wrong)
        assert images.read(other.getvalue())[:20].min() > 200
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(action="ignore"):
        for _ in range(200):
            damaged = bytearray(file.getvalue())
            damaged[rng.integers(12, 60)] = rng.integers(256)
            with contextlib.suppress(images.ImageError):
                assert images.read(bytes(damaged)).ndim == 3


def test_pictures_of_sixteen_bits_are_scaled():
    grey = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (20, 1))
    found = images.read(encoded(grey))
    np.testing.assert_array_equal(found, (grey[..., None] >> 8).repeat(3, 2))
    with pytest.raises(images.ImageError, match=r"mode F, not of 8 or 16 bits"):
        images.read(encoded(grey.astype(np.float32) / 65535, "tiff"), "a.tiff")


def test_the_middle_square_is_averaged():
    """Of 4 x 4 blocks each pixel is near their mean, and the ends of the longer side are cut."""
    blocks = np.random.default_rng(0).integers(60, 200, (16, 16, 3))
    image = np.full((64, 100, 3), 255, np.uint8)
    image[:, 18:82] = blocks.repeat(4, 0).repeat(4, 1)
    found = images.resized(image, 16, 3).astype(int)
    # A triangle of 8 pixels takes a quarter of its weight in each direction from the neighbours.
    inside = np.abs(found - blocks)[1:-1, 1:-1]
    assert found.shape == (16, 16, 3)
    assert inside.mean() < 0.5 * np.abs(blocks - blocks.mean()).mean()
    grey = images.resized(image, 16, 1)
    assert grey.shape == (16, 16, 1)
    expected = blocks @ [0.299, 0.587, 0.114]
    assert np.corrcoef(grey[..., 0].ravel(), expected.ravel())[0, 1] > 0.9


def test_values_and_bytes():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    values = images.to_values(every)
    assert (values.min(), values.max()) == (-1, 1)
    np.testing.assert_array_equal(images.to_bytes(values), every)
    # Nothing is stretched to the contrast of a picture.
    faint = np.linspace(-0.1, 0.1, 256, dtype=np.float32).reshape(1, 16, 16, 1)
    shown = images.to_bytes(faint)
    assert (shown.min(), shown.max()) == (115, 140)
    assert images.to_bytes(np.full((1, 2, 2, 1), 7.0)).max() == 255
