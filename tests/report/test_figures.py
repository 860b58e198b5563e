"""Figures are drawn from what a run really has: gaps, odd values, long texts, any picture."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crem_jax.report.figures import answers_sheet, retrieval_grid, training_curves


def _size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def _has_colour(path, colour):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return bool((np.abs(pixels.astype(int) - colour).sum(-1) < 9).any())


RIGHT, WRONG = (0x1A, 0x7F, 0x37), (0xC6, 0x28, 0x28)


def test_curves_survive_missing_keys_and_odd_values(tmp_path):
    metrics = [{"step": s, "loss": 1 / (s + 1), "p1": s / 100, "lr": 1e-3} for s in range(90)]
    metrics += [{"step": 90, "loss": float("nan"), "p1": None, "note": "late"}, {"loss": 1.0}, {}]
    metrics += [{"step": 50, "eval/scene_p1": 0.5, "eval/elastic": {"4": 0.1}}]
    path = tmp_path / "new" / "curves.png"
    training_curves(metrics, path)
    with_all = _size(path)
    training_curves([{"step": 1, "loss": 2.0}], path)
    assert _size(path)[0] < with_all[0], "panels without data take no room"


def test_no_curve_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no curve to draw in 2 rows of metrics; expected 'step'"):
        training_curves([{"step": 1, "seconds": 3}, {}], tmp_path / "curves.png")


def test_grid_frames_right_hits_green_and_wrong_ones_red(tmp_path):
    path, picture = tmp_path / "grid.png", tmp_path / "a.png"
    Image.new("RGBA", (30, 90), (0, 0, 255, 255)).save(picture)
    unknown = [("a $tiger$ " * 40, [(picture, "a.png 0.9", None)] * 7)]
    retrieval_grid(unknown, path)
    assert not _has_colour(path, RIGHT) and not _has_colour(path, WRONG)
    five = _size(path)
    retrieval_grid(unknown, path, top=7)
    assert _size(path)[0] > five[0]
    retrieval_grid([(picture, [(picture, "", True), ("a cat", "0.1", False)]), ("x", [])], path)
    assert _has_colour(path, RIGHT) and _has_colour(path, WRONG)


def test_answers_are_green_where_they_equal_the_truth_and_red_elsewhere(tmp_path):
    path, picture = tmp_path / "answers.png", np.full((9, 9, 3), 255, np.uint8)
    answers_sheet([(picture, "a tiger", "A  tiger", "a tiger")] * 3, path)
    assert _has_colour(path, RIGHT) and not _has_colour(path, WRONG)
    answers_sheet([(picture, "a tiger", "", "a cat $")], path)
    assert _has_colour(path, WRONG) and not _has_colour(path, RIGHT)


def test_figures_without_rows_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no query to draw in the retrieval grid"):
        retrieval_grid([], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="no answer to draw in the answers sheet"):
        answers_sheet([], tmp_path / "answers.png")


def test_importing_the_figures_does_not_import_matplotlib():
    code = "import sys, crem_jax.report.figures; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
