"""The sheet of talking faces: every portrait and mouth in its place, phones by their pictures."""

import numpy as np

from benchmarks import faces_sheet


def test_a_second_of_mouths_below_the_portraits():
    mouths = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((96, 96), np.uint8)
    faces = np.full((2, 224, 224, 3), (9, 99, 199), np.uint8)
    records = [{"id": f"a{k}", "text": "SO", "face": faces, "video": mouths + k} for k in (0, 100)]
    page = np.asarray(faces_sheet.sheet(records, first=5))
    height = page.shape[0] // 2
    for row, level in ((0, 0), (height, 100)):
        assert page[row + 100, 300].tolist() == [9, 99, 199]
        below = page[row + 20 + 192 + 4 :]
        for k in range(25):
            middle = below[50 + k // 13 * 100, 48 + k % 13 * 100]
            assert middle.tolist() == [level + 5 + k] * 3, k
    assert (page[height - 50, 12 * 100 + 48] == 255).all()  # there is no 26th


def test_phones_are_said_by_the_pictures_they_begin_in():
    entry = {"phones": [[100, "a"], [200, "m"], [250, "i:"], [1200, "p"], [1210, "_:"]]}
    assert faces_sheet.phones_of(entry, first=5) == "m 0.0 i: 1.2"
