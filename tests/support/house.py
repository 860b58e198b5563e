"""The house: the rooms of crem_jax by level, and a check of who may import whom.

    python -m tests.support.house                         what breaks a rule (exit code 1)
    python -m tests.support.house --draw docs/house.svg   the picture of docs/architecture.md

Every import counts, those inside functions too. The rules: a room imports only rooms of lower
levels; files do not import each other in a circle; a folder holds at most MOST_FILES files.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.house_picture import draw

ROOT = Path(__file__).parents[2]

LEVELS = (
    ("cli",),
    ("commands",),
    ("report",),
    ("ablation", "serve.http"),
    ("evaluate.comprehension", "evaluate.mmeb", "plan", "serve.page"),
    ("evaluate", "serve.service"),
    ("train", "face", "serve.engine", "serve.inputs"),
    ("train.run", "library"),
    ("train.objective", "inference", "library.stores"),
    ("data.tools", "data.batches", "checkpoints"),
    ("data.sources", "convert"),
    ("data.sources.formats", "data.emoji", "data.inputs", "serve"),
    ("library.conditions",),
    ("data.sources.base", "data.images", "library.entry", "library.ann", "configs"),
    ("data", "model", "configs.schema"),
    ("ground",),
)
"""The rooms, the highest level first: packages and single modules of crem_jax. A file belongs to
the room with the longest name that it is in.
"""

MEMBERS = {
    "cli": ("cli", "__main__"),
    "face": ("__init__",),
    "ground": (
        "chips",
        "config",
        "configs.fields",
        "distributed",
        "errors",
        "files",
        "flops",
        "lazy_array",
        "mesh",
        "processes",
        "trees",
        "types",
    ),
}
"""What belongs to rooms that are not named like a package or module."""

APART = (("data", "model"), ("library", "train"), ("serve", "train"), ("serve", "evaluate"))
"""(importer, imported) that stay apart though their levels would allow it: the pipeline's workers
start without the model, and to serve takes nothing of what trains and measures.
"""

MOST_FILES = 12
ROOMY = ("commands", "model")
"""Folders that may hold more: one file a verb, one file a part of the model."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", metavar="FILE", help="write the picture there")
    args = parser.parse_args()
    package = ROOT / "crem_jax"
    found = problems(package)
    print("\n".join(found), file=sys.stderr)
    if found:
        return 1
    arrows = room_arrows(package)
    print(f"{len(levels())} rooms, {len(arrows)} arrows between them, none runs up, no circle")
    if args.draw:
        Path(args.draw).write_text(picture(package))
    return 0


def problems(package: Path) -> list[str]:
    """What breaks the rules in a package's folder, one line each."""
    files = modules(package)
    homeless = [
        f"{path.relative_to(package.parent)}: no room of LEVELS in tests/support/house.py has it"
        for name, path in files.items()
        if room_of(name) is None
    ]
    if homeless:
        return homeless
    return [*_wrong_ways(package), *_circles(package), *_full_folders(package)]


def modules(package: Path) -> dict[str, Path]:
    """Module name below the package, "" for the package itself -> its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] != "assets":  # copied into exports, never imported
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(package: Path) -> Iterator[tuple[str, str, int]]:
    """(importer, imported, line) of every import of one module of the package by another."""
    files = modules(package)
    prefix = package.name
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    raise ValueError(f"{path}:{node.lineno}: a relative import; write it in full")
                wanted = [
                    full if full.removeprefix(f"{prefix}.") in files else str(node.module)
                    for full in (f"{node.module}.{alias.name}" for alias in node.names)
                ]
            else:
                continue
            for module in wanted:
                target = "" if module == prefix else module.removeprefix(f"{prefix}.")
                inside = module == prefix or module.startswith(f"{prefix}.")
                if inside and target in files and target != name:
                    yield name, target, node.lineno


def levels() -> dict[str, int]:
    """Room -> its level, 0 for the ground."""
    return {room: level for level, rooms in enumerate(reversed(LEVELS)) for room in rooms}


def room_of(module: str) -> str | None:
    """The room of a module below the package."""
    for room, members in MEMBERS.items():
        if (module or "__init__") in members:
            return room
    parts = module.split(".")
    rooms = levels()
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in rooms), None)


def room_arrows(package: Path) -> set[tuple[str, str]]:
    """(importing room, imported room), of different rooms."""
    pairs = {(room_of(a), room_of(b)) for a, b, _ in imports(package)}
    return {(a, b) for a, b in pairs if a and b and a != b}


def picture(package: Path) -> str:
    """SVG of the rooms and what they import."""
    return draw(LEVELS, room_arrows(package), MEMBERS["ground"])


def _wrong_ways(package: Path) -> Iterator[str]:
    files, level = modules(package), levels()
    for importer, imported, line in imports(package):
        here, there = room_of(importer), room_of(imported)
        place = f"{files[importer].relative_to(package.parent)}:{line}: {here} imports {there}"
        if here != there and level[there] >= level[here]:
            yield f"{place}, which is not below it"
        elif any(_within(here, a) and _within(there, b) for a, b in APART):
            yield f"{place}, which it is kept apart from"


def _within(room: str, part: str) -> bool:
    return room == part or room.startswith(f"{part}.")


def _circles(package: Path) -> Iterator[str]:
    order = graphlib.TopologicalSorter()
    for importer, imported, _ in imports(package):
        order.add(importer, imported)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        yield "files import each other in a circle: " + " ← ".join(error.args[1])


def _full_folders(package: Path) -> Iterator[str]:
    folders: dict[Path, int] = {}
    for path in modules(package).values():
        if path.stem not in ("__init__", "__main__"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    for folder, count in folders.items():
        if count > MOST_FILES and folder.relative_to(package).as_posix() not in ROOMY:
            yield f"{folder.relative_to(package.parent)}: {count} files, more than {MOST_FILES}"


if __name__ == "__main__":
    sys.exit(main())
