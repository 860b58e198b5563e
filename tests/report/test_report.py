"""`crem report` gathers a run, whatever it has so far, in one page that needs no other file."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.support.cli_runner import crem


@pytest.fixture
def run(tmp_path):
    """What a run that has just begun leaves."""
    run = tmp_path / "my-run"
    run.mkdir()
    start = {"from_step": 0, "devices": "1 × cpu", "git": "abc+", "versions": {"jax": "1.2"}}
    recipe = {"steps": 7, "optim": {"lr": 0.5}, "made_with": [{**start, "data": {}}]}
    (run / "recipe.json").write_text(json.dumps(recipe))
    rows = [{"step": step, "loss": 3.0 - step, "lr": 0.5} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run


def test_a_run_that_has_begun_shows_curves_recipe_and_surroundings(capsys, run):
    got = crem(capsys, "report", run, "--json")
    assert got.json == {"page": str(run / "report.html")}
    page = (run / "report.html").read_text()
    assert "Run my-run" in page and page.count("data:image/png;base64,") == 1
    assert "&#34;lr&#34;: 0.5" in page and "1 × cpu" in page and "abc+" in page
    assert "What it finds" not in page and not re.search(r'(src|href)="(?!data:)', page)


def test_a_finished_run_shows_its_figures_pictures_and_evaluations(capsys, run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in ("retrieval.png", "answers.png"):
        Image.fromarray(noise).save(run / name)
    (run / "summary.json").write_text(json.dumps({"p1": 0.25, "elastic": {"4": 0.5}, "none": None}))
    for name, scores in (
        (
            "mmeb",
            {
                "means": {"overall": 0.667},
                "datasets": {
                    "GQA": {"precision@1": 0.123, "chance": 0.01, "ties": 3, "num_pred": 1000}
                },
                "warnings": ["1 of MMEB's 36 data sets"],
            },
        ),
        (
            "comprehension",
            {
                "modes": ["native", "compressed"],
                "benchmarks": {
                    "AI2D": {"scores": {"native": {"overall": 0.531}, "compressed": None}}
                },
            },
        ),
    ):
        (run / name).mkdir()
        (run / name / "scores.json").write_text(json.dumps(scores))
    (run / "ablation.json").write_text('{"scores": {"k=all,sinks=0": {"find": 0.777}}}')
    Image.fromarray(noise).save(run / "mmeb" / "mmeb.png")
    out = tmp_path / "page.html"
    assert crem(capsys, "report", run, "--out", out).code == 0
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 4
    shown = ["elastic / 4", "0.25", "0.667", "GQA", "0.123", "1000", "AI2D", "53.1", "<td>–</td>"]
    shown += ["Measured by crem ablate", "0.777", "1 of MMEB&#39;s 36 data sets"]
    for words in shown:
        assert words in page


def test_what_is_no_run_is_named(capsys, tmp_path):
    got = crem(capsys, "report", tmp_path)
    assert got.code == 2 and f"{tmp_path} is no run: it has neither recipe.json" in got.err
    (tmp_path / "recipe.json").write_text("{")
    got = crem(capsys, "report", tmp_path)
    assert got.code == 2 and f"{tmp_path / 'recipe.json'}: " in got.err
