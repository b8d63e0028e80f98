"""The grid of an evaluation."""

import numpy as np

from generation import showing


def test_many_people_go_on_below_in_their_order():
    """Twenty people, a portrait and one fake of each, in batches of no order."""
    order = np.random.default_rng(0).permutation(20)
    shades = np.stack([order, 100 + order], axis=1).astype(np.uint8)  # [people, rows]
    grid = np.broadcast_to(shades[:, :, None, None, None], (20, 2, 4, 4, 1))
    batches = [{"grid": grid[k : k + 7], "grid_person": order[k : k + 7]} for k in range(0, 20, 7)]
    pictures, sounds = showing.of_outputs("face", batches, 16_000)
    sheet = pictures["faces"]
    assert sheet.shape == (4 * 10 - 2, 16 * 10 - 2, 3)  # each doubled, 2 pixels between
    middle = sheet[4::10, 4::10, 0]
    rows = [range(16), range(100, 116), [*range(16, 20), *[255] * 12]]
    np.testing.assert_array_equal(middle, [*rows, [*range(116, 120), *[255] * 12]])
    assert sounds == {}
