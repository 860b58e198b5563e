"""Names in the code are the field's standard terms; docs/glossary.md maps the warm ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = {
    *("Told", "Sight", "Seen", "Chance", "Filling", "Taken", "Made", "_Job", "Place", "Look"),
    *("Thing", "Lost", "Said", "Theirs", "Ours", "check_telling", "check_finding"),
}
RETIRED_FUNCTIONS = {"model": {"see", "tell"}, "train": {"see", "tell"}}
RETIRED_FIELDS = {
    room: {"kept"} for room in ("train/objective", "inference", "serve/engine", "evaluate")
}


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def test_no_retired_identifier_is_left():
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "crem_jax").rglob("*.py")
        for name in _identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name in RETIRED
    }
    assert not found


def _functions(tree: ast.AST) -> Iterator[str]:
    """Names of functions, where they are defined, imported or called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.alias):
            yield node.name
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def _fields(tree: ast.AST) -> Iterator[str]:
    """Names of arguments, keywords, attributes and the fields of dataclasses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize(
    ("rooms", "names_of"), [(RETIRED_FUNCTIONS, _functions), (RETIRED_FIELDS, _fields)]
)
def test_no_retired_function_or_field_is_left_in_its_room(rooms, names_of):
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for room, retired in rooms.items()
        for path in sorted((ROOT / "crem_jax" / room).rglob("*.py"))
        for name in names_of(ast.parse(path.read_text(encoding="utf-8")))
        if name in retired
    ]
    assert not found


def test_each_kind_of_retired_name_is_recognised():
    tree = ast.parse("from a import see\ndef tell(kept): pass\nb.see(x)\nclass C:\n  kept: int\n")
    assert list(_functions(tree)).count("see") == 2 and "tell" in _functions(tree)
    assert list(_fields(tree)).count("kept") == 2


def test_every_name_of_the_glossary_is_in_the_code():
    rows = re.findall(r"^\|.*\|.*\| (.*) \|$", (ROOT / "docs/glossary.md").read_text(), re.M)
    names = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    code = "\n".join(path.read_text() for path in (ROOT / "crem_jax").rglob("*.py"))
    assert len(names) > 15
    assert not [name for name in names if not re.search(rf"\b{name}\b", code)]
