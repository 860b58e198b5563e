"""The tree of config sections: listing keys, filling in defaults, checking and building.

A section is a dataclass. A key of it is a leaf, a section (which may be optional: None until one
of its keys is given), or an open map from any name to a leaf or a section.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from crem_jax.configs.fields import (
    PARTIAL,
    REQUIRED,
    ConfigError,
    Key,
    check_value,
    default_of,
    key_of,
    refuse_unknown,
)
from crem_jax.configs.schema import values as types
from crem_jax.configs.schema.sources import SourceConfig, check_arguments, kind_of


@dataclasses.dataclass(frozen=True)
class Node:
    """A key of the tree.

    Attributes:
      hint: its type. default: REQUIRED if it has none.
      section: the dataclass whose keys are below it. partial: whether they may be left unset.
      items: of an open map, the node below any name.
    """

    hint: Any
    key: Key = Key()
    default: Any = REQUIRED
    section: type | None = None
    partial: bool = False
    items: Node | None = None

    @property
    def optional(self) -> bool:
        return self.default is None

    def initial(self) -> Any:
        """The value before a recipe or a flag sets one."""
        if self.default is not REQUIRED:
            return self.default
        return {} if self.items or self.section else None

    def below(self, name: str, value: Mapping[str, Any], where: str) -> dict[str, Node]:
        """The nodes below it, by key.

        Args:
          name: its own key. value: the mapping it holds. where: its path, for errors.

        Raises:
          ConfigError: it is a source of an unknown kind.
        """
        if self.section is None:
            return {}
        if self.section is SourceConfig:
            return keys_of(kind_of(name, value, where))
        return keys_of(self.section, self.partial)


def keys_of(section: type, partial: bool = False) -> dict[str, Node]:
    """The keys of a section in the order they are declared."""
    return _keys_of(section, partial)


@functools.cache
def _keys_of(section: Any, partial: bool) -> dict[str, Node]:
    hints = typing.get_type_hints(section)
    nodes = {}
    for each in dataclasses.fields(section):
        default, key = default_of(each), key_of(each)
        if partial:
            hint, key = hints[each.name] | None, dataclasses.replace(key, scratch=default)
            nodes[each.name] = Node(hint, key, None)
        elif PARTIAL in each.metadata:
            nodes[each.name] = Node(
                hints[each.name], key, {}, section=each.metadata[PARTIAL], partial=True
            )
        else:
            nodes[each.name] = _node(hints[each.name], key, default)
    return nodes


def _node(hint: Any, key: Key, default: Any) -> Node:
    kinds = typing.get_args(hint) if types.is_union(hint) else (hint,)
    section: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    items = None
    if mapping := types.mapping_in(hint):
        items = _node(typing.get_args(mapping)[1], key, REQUIRED)
    return Node(hint, key, default, section, items=items)


def fill(section: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section, with defaults for keys that are missing or None.

    Unknown keys stay, for `build` to refuse.
    """
    return _filled(Node(section, section=section), "", values)


def _filled(node: Node, name: str, value: Any) -> Any:
    if value is None and not (node.optional or types.is_optional(node.hint)):
        value = node.initial()
    if not isinstance(value, Mapping):
        return value
    if node.items is not None:
        return {each: _filled(node.items, each, below) for each, below in value.items()}
    if node.section is SourceConfig:
        value = {**value, "kind": value.get("kind") or name}
    try:
        keys = node.below(name, value, "")
    except ConfigError:  # a source of no known kind is refused when it is built
        keys = {}
    known = {
        each: _filled(key, each, value[each] if each in value else key.initial())
        for each, key in keys.items()
    }
    return {**known, **{each: given for each, given in value.items() if each not in keys}}


def build(section: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Builds the dataclass of filled values. `where` is the section's path; "" is the root.

    Raises:
      ConfigError: an unknown key, a value of another type or out of its bounds, a required key
        that is not set, or values that the dataclass itself refuses.
    """
    nodes = keys_of(section)
    if issubclass(section, SourceConfig):
        check_arguments(section, values, where)
    refuse_unknown(values, list(nodes), where)
    built = {}
    for name, node in nodes.items():
        place = f"{where}.{name}" if where else name
        if not where and not node.section:
            place = f"config.{name}"
        value = values[name]
        if value is None and node.default is REQUIRED:
            raise ConfigError(f"{place} is not set; it is: {node.key.doc}")
        built[name] = _built(node, name, value, place)
    return section(**built)


def _built(node: Node, name: str, value: Any, where: str) -> Any:
    if node.items is not None and isinstance(value, Mapping):
        return {
            each: _built(node.items, each, below, f"{where}.{each}")
            for each, below in value.items()
        }
    if node.section is None or value is None:
        value = types.typed(value, node.hint, where)
        check_value(value, node.key, where)
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r}: expected a section")
    if node.partial:
        keys = node.below(name, value, where)
        refuse_unknown(value, list(keys), where)
        stated = {each: given for each, given in value.items() if given is not None}
        return {each: _built(keys[each], each, stated[each], f"{where}.{each}") for each in stated}
    section = kind_of(name, value, where) if node.section is SourceConfig else node.section
    try:
        return build(section, value, where)
    except ConfigError as error:
        # A section below an open map does not know its own path.
        raise error if where in str(error) else ConfigError(f"{where}: {error}") from error


def source_config(kind: str, arguments: Mapping[str, Any], where: str) -> SourceConfig:
    """Builds the checked arguments of a source.

    Raises:
      ConfigError: the kind is unknown, or an argument is unknown, missing or invalid.
    """
    node = Node(SourceConfig, section=SourceConfig)
    return _built(node, kind, _filled(node, kind, {**arguments, "kind": kind}), where)


def leaves(section: type, values: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all keys; below open maps, of the names that `values` holds.

    The keys of an optional section that is None are included: setting one creates the section.
    """
    yield from _leaves(Node(section, section=section), "", values, "")


def _leaves(node: Node, name: str, value: Any, where: str) -> Iterator[str]:
    if where:
        yield where
    value = value if isinstance(value, Mapping) else {}
    prefix = f"{where}." if where else ""
    if node.items is not None:
        for each, below in value.items():
            yield from _leaves(node.items, each, below, f"{prefix}{each}")
        return
    try:
        keys = node.below(name, value, where)
    except ConfigError:
        return
    for each, key in keys.items():
        yield from _leaves(key, each, value.get(each), f"{prefix}{each}")
