"""Imports run downwards, and the picture of the house shows them."""

import pytest

from tests.support import house


def test_the_house_keeps_its_rules():
    assert house.problems(house.ROOT / "crem_jax") == []


def test_the_picture_shows_the_house_as_it_is():
    picture = (house.ROOT / "docs/house.svg").read_text()
    hint = "draw it again: python -m tests.support.house --draw docs/house.svg"
    assert picture == house.picture(house.ROOT / "crem_jax"), hint


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"model/mask.py": "from crem_jax.train.loop import train", "train/loop.py": ""},
            "crem_jax/model/mask.py:1: model imports train, which is not below it",
        ),
        (
            {"model/mask.py": "def f():\n    import crem_jax.cli", "cli.py": ""},
            "crem_jax/model/mask.py:2: model imports cli, which is not below it",
        ),
        (
            {"evaluate/mmeb/a.py": "import crem_jax.plan.b", "plan/b.py": ""},
            "crem_jax/evaluate/mmeb/a.py:1: evaluate.mmeb imports plan, which is not below it",
        ),
        (
            {"data/batches/a.py": "from crem_jax.model import mask", "model/mask.py": ""},
            "crem_jax/data/batches/a.py:1: data.batches imports model, which it is kept apart from",
        ),
        (
            {"model/a.py": "import crem_jax.model.b", "model/b.py": "import crem_jax.model.a"},
            "files import each other in a circle: model.a ← model.b ← model.a",
        ),
        (
            {f"train/part{i}.py": "" for i in range(13)},
            "crem_jax/train: 13 files, more than 12",
        ),
        (
            {"attic/a.py": ""},
            "crem_jax/attic/a.py: no room of LEVELS in tests/support/house.py has it",
        ),
    ],
)
def test_the_check_names_what_breaks_a_rule(tmp_path, files, problem):
    for name, text in files.items():
        path = tmp_path / "crem_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert house.problems(tmp_path / "crem_jax") == [problem]
