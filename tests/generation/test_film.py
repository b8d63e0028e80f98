"""The film over training."""

import numpy as np
import PIL.Image

from generation import film


def test_grids_become_a_film_in_the_order_of_their_steps(tmp_path, caplog):
    shades = {900: 40, 1100: 120, 10_000_000: 220}
    for step, shade in shades.items():
        grid = np.full((34, 66, 3), shade, np.uint8)
        PIL.Image.fromarray(grid).save(tmp_path / f"dev-faces-{step:07d}.png")
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "dev-faces-0000100.png")
    (tmp_path / "dev-faces-0000200.png").write_bytes(b"no picture")
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "test-faces-0000100.png")
    assert [path.name for path in film.over_training(tmp_path)] == [
        "dev-faces.gif",
        "dev-faces.mp4",
    ]
    assert "2 of 5 grids are of another size or cannot be read" in caplog.text
    with PIL.Image.open(tmp_path / "dev-faces.gif") as found:
        assert (found.n_frames, found.size) == (3, (66, 34))
        for frame, shade in enumerate(shades.values()):
            found.seek(frame)
            np.testing.assert_allclose(np.asarray(found.convert("RGB")), shade, atol=2)


def test_one_grid_is_no_film(tmp_path):
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "dev-faces-0000100.png")
    assert film.over_training(tmp_path) == []
