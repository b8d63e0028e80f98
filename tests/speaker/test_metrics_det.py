"""DET plots: what is drawn is what was measured, and files are there whole or not at all."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common import errors
from speaker import metrics


def curve(seed, gap=2.0, num_target=200, num_nontarget=2000):
    rng = np.random.default_rng(seed)
    is_target = np.arange(num_target + num_nontarget) < num_target
    return metrics.error_curve(rng.normal(size=len(is_target)) + gap * is_target, is_target)


def drawn(curves):
    axes = Figure().add_subplot()
    metrics.draw_det(axes, curves)
    return axes


def test_lines_marks_and_legend_are_those_of_the_curves():
    curves = {"cosine": curve(0), "PLDA": curve(1, gap=3.0)}
    axes = drawn(curves)
    lines = [line for line in axes.get_lines() if "(EER" in str(line.get_label())]
    marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(lines) == len(marks) == 2
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    for line, mark, text, (name, found) in zip(lines, marks, texts, curves.items(), strict=True):
        p_fa, p_miss = metrics.det_points(found)
        np.testing.assert_array_equal(line.get_xdata(), metrics.probit(p_fa))
        np.testing.assert_array_equal(line.get_ydata(), metrics.probit(p_miss))
        rate = metrics.eer(found)
        np.testing.assert_allclose(mark.get_xydata(), metrics.probit(np.full((1, 2), rate)))
        assert mark.get_color() == line.get_color()
        assert text == f"{name}  (EER {100 * rate:.2f} %)"
        for values, (low, high) in (
            (line.get_xdata(), axes.get_xlim()),
            (line.get_ydata(), axes.get_ylim()),
        ):
            assert low < values.min() < values.max() < high


def test_ticks_are_normal_deviates_of_their_percentages():
    axes = drawn({"x": curve(0)})
    for axis in (axes.xaxis, axes.yaxis):
        labels = [float(label.get_text()) / 100 for label in axis.get_ticklabels()]
        np.testing.assert_allclose(axis.get_ticklocs(), metrics.probit(np.array(labels)))
    assert 0.05 in labels


def test_system_without_errors_is_in_the_legend():
    axes = drawn({"perfect": curve(0, gap=100.0)})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["perfect  (EER 0.00 %)"]
    assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()


def test_file_is_a_picture(tmp_path):
    path = tmp_path / "new" / "det.png"
    metrics.save_det(path, {"cosine": curve(0)})
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
    assert min(pixels.shape) > 500
    assert pixels.std() > 5  # not blank
    metrics.save_det(str(tmp_path / "det.svg"), {"cosine": curve(0)})
    assert "<svg" in (tmp_path / "det.svg").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["det.svg", "new"]
    assert [p.name for p in path.parent.iterdir()] == ["det.png"]


def test_mistakes_are_one_message_and_leave_nothing(tmp_path, monkeypatch):
    with pytest.raises(errors.UserError, match="no curve"):
        metrics.save_det(tmp_path / "a.png", {})
    with pytest.raises(errors.UserError, match=r"'gif'.*\.png"):
        metrics.save_det(tmp_path / "a.gif", {"x": curve(0)})
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="cannot be written"):
        metrics.save_det(tmp_path / "file" / "a.png", {"x": curve(0)})
    (tmp_path / "a.png").write_text("before")

    def fail(figure, file, **_):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(errors.UserError, match="No space left"):
        metrics.save_det(tmp_path / "a.png", {"x": curve(0)})
    assert (tmp_path / "a.png").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]
