"""Command-line flags that override a recipe: `--config.optim.lr=1e-4`.

Types come from the schema, not from the value that is replaced. A flag below an optional section
(`model.lora`) creates it, and an open map (`data.sources.NAME`) takes new names, completed with the
defaults of their schema.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from crem_jax.configs.fields import ConfigError, check_value
from crem_jax.configs.schema import TrainConfig, complete, tree
from crem_jax.configs.schema.sources import KINDS, SourceConfig
from crem_jax.configs.schema.values import parsed

_FLAG = re.compile(r"--?config\.([^=\[\]]+)(?:\[(\d+)\])?(?:=(.*))?", re.DOTALL)
_KIND = re.compile(r"data\.sources\.[^.]+\.kind")


def apply_flags(config: ConfigDict, flags: Sequence[str], file: str) -> ConfigDict:
    """Sets the keys given by flags, adds the schema's defaults, and returns the config.

    Args:
      flags: `--config.KEY=VALUE` or `--config.KEY VALUE`; `--config.KEY` alone means true.
        `KEY[I]` is the element of a tuple.
      file: the name of the config, for errors.

    Raises:
      ConfigError: an unknown key (the message names similar ones), or an invalid value.
    """
    given = list(_split(flags))
    with config.unlocked(), config.ignore_type():
        # The kind of a source decides which other keys it has.
        for key, index, text in sorted(given, key=lambda flag: not _KIND.fullmatch(flag[0])):
            _set(config, key, index, text, file)
        return complete(config)


def _split(flags: Sequence[str]) -> Iterator[tuple[str, str | None, str]]:
    """(key, index, text of the value) of every flag."""
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        match = _FLAG.fullmatch(flag)
        if match is None:
            raise ConfigError(f"unexpected argument {flag!r}; expected --config.KEY=VALUE")
        key, index, text = match.groups()
        if text is None and rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        elif text is None:
            text = "true"
        yield key, index, text


def _set(config: ConfigDict, key: str, index: str | None, text: str, file: str) -> None:
    *parents, last = key.split(".")
    node, there, path = tree.Node(TrainConfig, section=TrainConfig), config, ""
    for name in parents:
        node = _below(config, node, there, path, name, key, file)
        path = f"{path}.{name}" if path else name
        if not isinstance(there.get(name), ConfigDict):
            if node.section is None and node.items is None:
                raise _unknown(config, key, file)
            there[name] = ConfigDict(type_safe=False)
        there = there[name]
    node = _below(config, node, there, path, last, key, file)
    if node.section is SourceConfig or (node.section is not None and text.lower() != "none"):
        raise ConfigError(f"--config.{key}={text}: expected one of its keys, --config.{key}.…")
    flag = f"--config.{key}"
    value = parsed(text, node.hint if index is None else Any, flag)
    if index is not None:
        value = _element(there.get(last), int(index), text, node, f"{flag}[{index}]")
    check_value(value, node.key, key if path else f"config.{key}")
    if _KIND.fullmatch(key):
        _change_kind(there, parents[-1], value)
    there[last] = value


def _below(
    config: ConfigDict, node: tree.Node, there: Any, path: str, name: str, key: str, file: str
) -> tree.Node:
    """The node of key `name` below `node`, whose values at `path` are `there`."""
    if node.items is not None and name:
        return node.items
    own = path.rpartition(".")[2]
    if node.section is SourceConfig and name == "kind":
        return tree.keys_of(SourceConfig)["kind"]
    if node.section is SourceConfig and own not in KINDS and not there.get("kind"):
        raise ConfigError(
            f"--config.{key}: {path} is new; give --config.{path}.kind too, one of "
            f"{', '.join(sorted(KINDS))}"
        )
    keys = node.below(own, there, path)
    if name not in keys:
        raise _unknown(config, key, file)
    return keys[name]


def _element(value: Any, index: int, text: str, node: tree.Node, flag: str) -> Any:
    """The tuple with one element replaced by a flag's text."""
    if not isinstance(value, tuple | list) or index >= len(value):
        raise ConfigError(f"{flag}={text}: the value is {value!r}, it has no element {index}")
    changed = [repr(each) for each in value]
    changed[index] = text
    return parsed(f"({', '.join(changed)},)", node.hint, flag)


def _change_kind(source: ConfigDict, name: str, kind: str) -> None:
    """Drops the defaults of the former kind that the new kind does not take."""
    before = source.get("kind") or name
    if kind == before or before not in KINDS or kind not in KINDS:
        return
    taken, nodes = tree.keys_of(KINDS[kind]), tree.keys_of(KINDS[before])
    for key, node in nodes.items():
        if key in source and key not in taken and source[key] == node.default:
            del source[key]


def _unknown(config: ConfigDict, key: str, file: str) -> ConfigError:
    keys = list(tree.leaves(TrainConfig, config.to_dict()))
    section, _, last = key.rpartition(".")
    near = difflib.get_close_matches(key, keys, 3, 0.7)
    near += [k for k in keys if k.rpartition(".")[2] == last and k not in near]
    inside = [k for k in keys if k.rpartition(".")[0] == (section if section in keys else "")]
    hint = f"near matches: {', '.join(near[:5])}" if near else f"known: {', '.join(inside)}"
    return ConfigError(f"unknown config key {key!r} in {file}; {hint}")
