"""The schema as text: docs/config.md, and the listing of a config.

python -m crem_jax.configs.document > docs/config.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from crem_jax.configs.fields import REQUIRED, Key
from crem_jax.configs.schema import TrainConfig, tree
from crem_jax.configs.schema.sources import KINDS, PACKAGED, SHARED, SourceConfig
from crem_jax.configs.schema.values import describe, is_mapping

NAME = "NAME"
"""Placeholder for a name of the user's choice in an open map."""

_HEAD = """\
# Configuration

Every key of a config, by section. This page is written from the schema (`crem_jax/configs/schema`)
by `python -m crem_jax.configs.document > docs/config.md`.

A recipe is a Python file with `get_config(option)`, which gives a ConfigDict. Some ship with the
package and are loaded by name (`--config=emoji:smoke`); `configs/` has a copy of each
to start your own from. Keys that a recipe leaves out have the defaults below, and any key can be
set by flag, whether or not the recipe sets it:

    crem train --config=own --workdir=runs/own --config.data.sources.mine.limit=500
    crem train --config=own --print_config     # every key of it; with --json as one document

`NAME` stands for a name of your choice; a flag may introduce a new one. A flag below `model.lora`,
which is `None` unless a recipe sets it, creates that section. Tuples are written
`--config.loss.dims=(16,32)`, and `--config.mesh[1]=4` sets one element; `None` is written `None`.

Keys of `model` may be *unset*: with `init_from` they are then taken from that model; from scratch
they have the default in brackets or are required. Shapes that contradict `init_from` are an error.
"""


@dataclasses.dataclass(frozen=True)
class Documented:
    """A key of the schema.

    Attributes:
      path: dotted, with NAME for names of the user's choice.
      kind: the kind of source whose argument it is.
      section: the dataclass that declares it.
    """

    path: str
    node: tree.Node
    section: type
    kind: str = ""


def all_keys() -> Iterator[Documented]:
    """Every leaf of the schema, in the order of the page."""
    root = tree.keys_of(TrainConfig)
    yield from (
        Documented(name, node, TrainConfig)
        for name, node in root.items()
        if node.section is None and node.items is None
    )
    for name, node in root.items():
        if node.section is not None:
            yield from _below(node.section, node.partial, name)


def _below(section: type, partial: bool, where: str, kind: str = "") -> Iterator[Documented]:
    later = []
    for name, node in tree.keys_of(section, partial).items():
        if kind and name in SHARED:
            continue
        path = f"{where}.{name}"
        if node.items is not None:
            if node.items.section is None:
                yield Documented(f"{path}.{NAME}", node.items, section, kind)
            else:
                later.append((node.items.section, False, f"{path}.{NAME}"))
            if not _only_map(node):
                yield Documented(path, node, section, kind)
        elif node.section is not None:
            later.append((node.section, node.partial, path))
        else:
            yield Documented(path, node, section, kind)
    for below, is_partial, path in later:
        yield from _below(below, is_partial, path)
        if below is SourceConfig:
            for each in PACKAGED:
                yield from _below(KINDS[each], False, path, each)


def _only_map(node: tree.Node) -> bool:
    """Whether an open map is the only type of the key."""
    return is_mapping(node.hint)


def markdown() -> str:
    """The text of docs/config.md."""
    lines, table = [_HEAD.rstrip()], None
    for each in all_keys():
        head = (each.path.rpartition(".")[0], each.kind)
        if each.path.endswith(f".{NAME}"):
            head = (each.path.rpartition(".")[0].rpartition(".")[0], each.kind)
        if head != table:
            lines += [*_heading(each, *head), "| key | value | default | |", "|---|---|---|---|"]
            table = head
        lines.append(_row(each))
    return "\n".join(lines) + "\n"


def _heading(first: Documented, where: str, kind: str) -> list[str]:
    """The title of a table, and the first paragraph about its section."""
    title = f"`{where}`" if where else "The run"
    if kind:
        title += f" of kind `{kind}`"
    about = (first.section.__doc__ or "").split("\n\n")
    own = first.section.__doc__ and not first.section.__doc__.startswith(first.section.__name__)
    text = [" ".join(about[0].split())] if where and own else []
    return ["", f"{'###' if '.' in where else '##'} {title}", "", *text, *([""] if text else [])]


def _row(each: Documented) -> str:
    value = describe(each.node.hint)
    if each.section is not SourceConfig:
        value = value.removesuffix(" or None")
    if bounds := _bounds(each.node.key):
        value += f", {bounds}"
    cells = (f"`{each.path}`", value, _default(each), each.node.key.doc)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _bounds(key: Key) -> str:
    if key.choices:
        return "one of " + ", ".join(f"`{choice}`" if choice else "`''`" for choice in key.choices)
    low = f"≥ {key.low:g}" if key.low is not None else ""
    low = f"> {key.above:g}" if key.above is not None else low
    high = f"≤ {key.high:g}" if key.high is not None else ""
    return ", ".join(filter(None, [low, high]))


def _default(each: Documented) -> str:
    key, node = each.node.key, each.node
    if each.path.startswith("model.") and node.default is None and "lora" not in each.path:
        return "unset, required" if key.scratch is REQUIRED else f"unset (`{key.scratch!r}`)"
    if each.path.endswith(f".{NAME}"):
        return ""
    return "required" if node.default is REQUIRED else f"`{node.default!r}`"


def listing(config: TrainConfig) -> str:
    """Every key of a config with its value, one per line."""
    lines, section = [], ""
    for path, value in _flat(config.to_dict()):
        head = path.partition(".")[0] if "." in path else ""
        lines += [""] * (head != section) + [f"{path} = {_shown(value)}"]
        section = head
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        inside = ", ".join(map(_shown, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)


if __name__ == "__main__":
    print(markdown(), end="")
