"""The recipe a run writes, so that it can be told from another and repeated.

WORKDIR/recipe.json is the config, and under `made_with` what every start of the run found: the
step it went on from, versions of libraries, the git commit of this library, and fingerprints of the
data. A run is continued by the same config, whatever it was made with.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from crem_jax import trees
from crem_jax.configs.schema import fill
from crem_jax.data.records import Record
from crem_jax.data.sources.base import Source, read_record
from crem_jax.errors import CremError
from crem_jax.files import write_text

FILE = "recipe.json"
_MADE_WITH = "made_with"
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow"),
    *("transformers", "libtpu", "crem_jax"),
)

FREE = (
    *("mesh", "log_every", "eval_every", "checkpoint_every", "max_nonfinite"),
    *("peak_flops", "data.workers", "data.threads"),
)
"""Keys that a resumed run may change: they do not change what is learnt."""


def refuse_another(directory: Path, recipe: dict) -> None:
    """Raises CremError if the run there has another recipe, naming the keys that differ.

    Keys in FREE may. A key that one of them lacks has the schema's default there: runs of earlier
    versions wrote only what their recipe said.
    """
    found = _read(directory / FILE)
    if found is None:
        return
    found.pop(_MADE_WITH, None)
    there, here = _leaves(found), _leaves(recipe)
    different = sorted(k for k in {*there, *here} if there.get(k) != here.get(k) and k not in FREE)
    if different:
        raise CremError(
            f"{directory} holds a run with another config (different: {', '.join(different)}); "
            "give another --workdir, or the same config to resume"
        )


def write(directory: Path, recipe: dict, sources: Mapping[str, Source], step: int) -> None:
    """Writes the recipe; this start of the run is added to those that are there.

    Args:
      sources: of the data, by name. step: the run goes on from.
    """
    path = directory / FILE
    starts = (_read(path) or {}).get(_MADE_WITH, [])
    starts.append(
        {
            "from_step": step,
            "versions": versions(),
            "git": git_commit(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "data": {name: fingerprint(source) for name, source in sorted(sources.items())},
        }
    )
    write_text(path, json.dumps(recipe | {_MADE_WITH: starts}, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(root: Path = Path(__file__).parents[3]) -> str | None:
    """Of this library's working copy at `root`, "+" behind it if files differ.

    Outside of git the file COMMIT says it, which the launch scripts put into the copies they make;
    without that, None.
    """
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    command.append("--exclude=*")  # no tags: the commit itself
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        file = root / "COMMIT"
        return (file.read_text().strip() or None) if file.exists() else None


def fingerprint(source: Source) -> dict[str, Any]:
    """How many records there are, and a hash of the first, the middle and the last of them."""
    count, digest = len(source), hashlib.blake2b(digest_size=8)
    for index in sorted({0, count // 2, count - 1}):
        try:
            digest.update(_content(read_record(source, index)))
        except CremError as error:  # the run itself skips and counts such records
            digest.update(type(error).__name__.encode())
    return {"records": count, "sample": digest.hexdigest()}


def _read(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CremError(
            f"{path} is no JSON ({error}); remove it to go on without comparing configs"
        ) from error


def _content(record: Record) -> bytes:
    items = (record.query, *record.positives, *record.negatives)
    return repr((record.id, [item.content_hash() for item in items], record.turns)).encode()


def _leaves(recipe: dict) -> dict[str, object]:
    whole = json.loads(json.dumps(fill(recipe)))  # tuples are lists
    return {path.replace("/", "."): leaf for path, leaf in trees.flatten(whole).items()}
