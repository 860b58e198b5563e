"""The recipe a run writes, so that it can be told from another and repeated."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from crem_jax import trees

FILE = "recipe.json"

FREE = (
    *("mesh", "log_every", "eval_every", "checkpoint_every", "max_nonfinite"),
    *("peak_flops", "data.workers", "data.threads"),
)
"""Keys that a resumed run may change: they do not change what is learnt."""


def recipe_of(config: ConfigDict) -> dict:
    """The config as JSON holds it."""
    return json.loads(config.to_json_best_effort())


def refuse_another(directory: Path, recipe: dict) -> None:
    """Raises ValueError if the run there has another recipe, naming the keys that differ.

    Keys in FREE may.
    """
    path = directory / FILE
    if not path.exists():
        return
    there, here = (_leaves(values) for values in (json.loads(path.read_text()), recipe))
    different = sorted(k for k in {*there, *here} if there.get(k) != here.get(k) and k not in FREE)
    if different:
        raise ValueError(
            f"{directory} holds a run with another config (different: {', '.join(different)}); "
            "give another --workdir, or the same config to resume"
        )


def write(directory: Path, recipe: dict) -> None:
    (directory / FILE).write_text(json.dumps(recipe, indent=1) + "\n")


def _leaves(recipe: dict) -> dict[str, object]:
    return {path.replace("/", "."): leaf for path, leaf in trees.flatten(recipe).items()}
