"""Names in the code are the field's standard terms; docs/glossary.md maps the warm ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RETIRED = {
    *("Told", "Sight", "Seen", "Chance", "Filling", "Taken", "Made", "_Job", "Place", "Look"),
    *("Thing", "Lost", "Said", "Theirs", "Ours", "check_telling", "check_finding"),
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


def test_every_name_of_the_glossary_is_in_the_code():
    rows = re.findall(r"^\|.*\|.*\| (.*) \|$", (ROOT / "docs/glossary.md").read_text(), re.M)
    names = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    code = "\n".join(path.read_text() for path in (ROOT / "crem_jax").rglob("*.py"))
    assert len(names) > 15
    assert not [name for name in names if not re.search(rf"\b{name}\b", code)]
