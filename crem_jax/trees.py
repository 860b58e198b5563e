"""Nested dicts of parameters by path, such as "backbone/layers/q/kernel", and rules over paths.

One mechanism serves freezing, learning rates, weight decay and adapters: an ordered list of
(regular expression, value), of which the first that matches the whole path applies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flax import traverse_util

from crem_jax.errors import CremError

T = TypeVar("T")
Tree = Mapping[str, Any]

_MISSING = object()


class TreeError(CremError):
    """Two trees differ, or a rule does not fit a tree."""


def flatten(tree: Tree) -> dict[str, Any]:
    """Leaves by path, sorted by path. Empty subtrees vanish."""
    return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`.

    Raises:
      TreeError: one path is a prefix of another.
    """
    parents = {path[:i] for path in leaves for i, letter in enumerate(path) if letter == "/"}
    for path in leaves:
        if path in parents:
            raise TreeError(f"{path}: is a leaf and a subtree at once")
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def match(
    rules: Sequence[tuple[str, T]], tree: Tree, *, where: str, default: Any = _MISSING
) -> dict[str, Any]:
    """A tree of values: each leaf's is that of the first rule whose pattern matches its whole path.

    Args:
      rules: (pattern, value) in order of precedence.
      tree: the tree whose leaf paths are matched.
      where: the config key that the rules come from, for errors.
      default: value of leaves that no rule matches; without it such a leaf is an error.

    Raises:
      TreeError: a pattern matches no path at all, or a path has no value; all are listed.
    """
    paths = list(flatten(tree))
    compiled = [(_compile(pattern, where), value) for pattern, value in rules]
    idle = [p.pattern for p, _ in compiled if not any(p.fullmatch(path) for path in paths)]
    if idle:
        raise TreeError(
            f"{where}: matches no parameter: {_listed(map(repr, idle))}; paths look like "
            f"{paths[0] if paths else '(the tree is empty)'}"
        )
    values, bare = {}, []
    for path in paths:
        found = next((value for p, value in compiled if p.fullmatch(path)), default)
        values[path] = found
        if found is _MISSING:
            bare.append(path)
    if bare:
        raise TreeError(f"{where}: no rule matches {_listed(bare)}")
    return unflatten(values)


def split(tree: Tree, chosen: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits off the chosen paths: (the rest of the tree, the chosen part); inverse of `merge`."""
    leaves = flatten(tree)
    rest = {path: leaf for path, leaf in leaves.items() if path not in chosen}
    return unflatten(rest), unflatten({p: leaf for p, leaf in leaves.items() if p in chosen})


def merge(*parts: Tree) -> dict[str, Any]:
    """Merges trees that share no path."""
    return unflatten({path: leaf for part in parts for path, leaf in flatten(part).items()})


def check_same(got: Tree, expected: Tree, *, what: str = "the tree") -> None:
    """Raises unless both trees have the same paths and shapes.

    Args:
      got, expected: trees of leaves with a shape.
      what: what the error calls `got`.

    Raises:
      TreeError: lists everything missing, extra and of another shape in one message.
    """
    problems = differences(
        {path: leaf.shape for path, leaf in flatten(got).items()},
        {path: leaf.shape for path, leaf in flatten(expected).items()},
    )
    if problems:
        raise TreeError(f"{what} does not fit: {'; '.join(problems)}")


def differences(
    got: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> list[str]:
    """How `got` (name -> shape) differs from `expected`, as clauses of an error; [] if equal."""
    missing = sorted(set(expected) - set(got))
    extra = sorted(set(got) - set(expected))
    shapes = [
        f"{name} has shape {list(got[name])}, expected {list(expected[name])}"
        for name in sorted(set(got) & set(expected))
        if tuple(got[name]) != tuple(expected[name])
    ]
    clauses = []
    if missing:
        clauses.append(f"missing ({len(missing)}): {_listed(missing)}")
    if extra:
        clauses.append(f"extra ({len(extra)}): {_listed(extra)}")
    if shapes:
        clauses.append(f"wrong shape ({len(shapes)}): {_listed(shapes)}")
    return clauses


def _compile(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise TreeError(f"{where}: {pattern!r} is no regular expression: {error}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
