"""Collectives of a compiled step, read from its HLO: kind, count and bytes, loops unrolled."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{?.*\{\s*$")
_SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|f8\w*|[su]\d+)\[([\d,]*)\]")
_OPERATION = re.compile(r"= (.*?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one step of one device.

    Attributes:
      count: how often one runs. bytes: of the larger side (input or result), summed.
    """

    kind: str
    count: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """From the text of an optimised module; the largest first.

    The compiler spreads a collective over several fusions, to hide it behind their arithmetic; its
    channel tells that they are one.
    """
    channels: set[str] = set()
    counts: collections.Counter = collections.Counter()
    sizes: collections.Counter = collections.Counter()
    lines, entry = _computations(hlo)

    def walk(name: str, times: int) -> None:
        for line in lines.get(name, ()):
            operation = _OPERATION.search(line)
            if not operation:
                continue
            kind = operation[2].removesuffix("-start")
            channel = _CHANNEL.search(line)
            known = channel and channel[1] in channels
            if kind in KINDS and not known:
                channels.update([channel[1]] if channel else [])
                counts[kind] += times
                sizes[kind] += times * max(_bytes(line), default=0)
            trips = _trips(line, lines) if operation[2] == "while" else 1
            for called in _called(line):
                walk(called, times * trips)

    walk(entry, 1)
    found = [Collective(kind, counts[kind], sizes[kind]) for kind in counts]
    return sorted(found, key=lambda c: -c.bytes)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        head = None if line.startswith((" ", "HloModule")) else _COMPUTATION.match(line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _trips(line: str, lines: dict[str, list[str]]) -> int:
    """How often a loop runs: its condition compares the index with the only constant there."""
    condition = _CONDITION.search(line)
    tested = lines.get(condition[1], ()) if condition else ()
    limits = [int(n) for each in tested for n in _LIMIT.findall(each)]
    return limits[0] if len(limits) == 1 else 1


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for group in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in group.split(","))


def _bytes(line: str) -> list[int]:
    """Sizes of all the arrays in an instruction: results, and operands where they are typed."""
    return [
        math.prod(int(n) for n in dims.split(",") if n) * _width(kind)
        for kind, dims in _SHAPE.findall(line.partition(", metadata=")[0])
    ]


def _width(kind: str) -> int:
    if kind.startswith("f8"):
        return 1
    return _WIDTH.get(kind) or max(int(re.sub(r"\D", "", kind)) // 8, 1)
