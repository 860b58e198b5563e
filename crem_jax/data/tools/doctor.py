"""Looks at every record of a source: what cannot be used, and why.

Each record is looked at on its own in another process, so that none can stop the rest: one that
cannot be used, crashes its process or takes too long is noted. An error that no source may raise
(see `Source`) ends the work, as it would end a training run.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from crem_jax.data.images.patches import fit_size
from crem_jax.data.sources.selected import where
from crem_jax.data.tools.inspect_record import Limits, RecordFindings, RecordInspector
from crem_jax.processes import WorkerLost, spread

FAULTS = {
    "record": "the row is not as its format wants it",
    "empty": "a side of it is empty",
    "missing": "a picture is not there",
    "damaged": "a picture cannot be decoded",
    "too large": "a picture has too many pixels",
    "aspect": "a picture is too long and thin",
    "tokens": "a text is too long",
    "negative": "a hard negative is a positive too",
    "duplicate": "it is the same as an earlier record",
    "crash": "the process that read it ended",
    "slow": "it took too long",
}
"""What keeps a record out of the index: kind of fault -> what it means."""

WARNING = "placeholder"
"""Placeholders and pictures differ in number; the record can be used."""

_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is known about a source.

    Attributes:
      good: bool [n], which records the index keeps.
      quarantine, warnings: {"record", "id", "where", "kind", "reason"} each, by record.
      counts: kind -> number of records with such a fault.
      tokens: int64 [m, 3] of the records that could be read, as in Seen.
      sizes: int64 [p, 2], (width, height) of the pictures.
    """

    good: np.ndarray
    quarantine: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    counts: dict[str, int]
    tokens: np.ndarray
    sizes: np.ndarray


def examine(
    source: Any,
    limits: Limits,
    tokenizer_file: str | os.PathLike,
    workers: int,
    keep: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Diagnosis:
    """Inspects every record of a source.

    Args:
      limits: what a good record respects. tokenizer_file: a tokenizer.json.
      workers: number of processes. keep: kinds of faults that do not exclude a record.
      progress: called with the number of records inspected since the last call.
    """
    total = len(source)
    findings: dict[int, RecordFindings] = {}
    inspector = RecordInspector(source, limits, os.fspath(tokenizer_file))
    todo = [(first, min(first + _CHUNK, total)) for first in range(0, total, _CHUNK)]
    while todo:
        rest: list[tuple[int, int]] = []
        at: collections.Counter[int] = collections.Counter()
        for (first, stop), message in spread(inspector, todo, workers, limits.seconds):
            index = first + at[first]
            at[first] += 1
            if isinstance(message, WorkerLost):
                kind = "slow" if message.reason.startswith("took") else "crash"
                message = RecordFindings(faults=((kind, message.reason),))
                rest.append((index + 1, stop))
            findings[index] = message
            progress(1)
        todo = [(first, stop) for first, stop in rest if first < stop]
    return _diagnose(source, [findings[index] for index in range(total)], keep)


def visual_tokens(width: int, height: int) -> int:
    """Number of Qwen2-VL vision tokens of an image: one per 28 x 28 pixels, in 4..1280."""
    unit = 28
    rows, columns = fit_size(
        height,
        width,
        patch=unit,
        merge=1,
        min_pixels=4 * unit**2,
        max_pixels=1280 * unit**2,
        hard_max=True,
    )
    return rows * columns // unit**2


def _diagnose(source: Any, findings: list[RecordFindings], keep: tuple[str, ...]) -> Diagnosis:
    good = np.ones(len(findings), bool)
    counts: collections.Counter[str] = collections.Counter()
    quarantine: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    first_with: dict[int, int] = {}
    for index, record in enumerate(findings):
        faults = list(record.faults)
        if record.digest and not faults:
            earlier = first_with.setdefault(record.digest, index)
            if earlier != index:
                faults.append(("duplicate", f"is the same as {where(source, earlier)}"))
        counts.update({kind for kind, _ in faults})
        counts.update({WARNING} if record.warnings else ())
        good[index] = all(kind in keep for kind, _ in faults)
        named = {"record": index, "id": record.id, "where": where(source, index)}
        for kind, reason in faults:
            (warnings if kind in keep else quarantine).append(
                {**named, "kind": kind, "reason": reason}
            )
        warnings += [{**named, "kind": WARNING, "reason": text} for text in record.warnings]
    read = [record for record in findings if record.digest]
    sizes = [size for record in findings for size in record.sizes]
    return Diagnosis(
        good,
        quarantine,
        warnings,
        {kind: counts[kind] for kind in (*FAULTS, WARNING) if counts[kind]},
        np.asarray([record.tokens for record in read], np.int64).reshape(-1, 3),
        np.asarray(sizes, np.int64).reshape(-1, 2),
    )
