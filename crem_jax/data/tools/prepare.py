"""Writes any source as a sharded tensorflow-datasets data set of the layout in `prepared.py`.

    OUT.partial/      the plan, and a note for each whole shard
    OUT.partial/data/ the shards; becomes OUT/ when the last is whole

What is in OUT depends on the source and the options alone: neither on the number of workers nor on
how often the work was interrupted. Interrupted work goes on with the shards that are not whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crem_jax.data.images.encoded import file_bytes
from crem_jax.data.records import Item, Record, RecordError
from crem_jax.data.sources.base import read_record
from crem_jax.data.sources.formats.tfds_layout import NAME, encode_record, write_info
from crem_jax.data.sources.selected import where
from crem_jax.errors import CremError
from crem_jax.files import (
    atomic_write,
    json_bytes,
    read_lines,
    write_bytes,
    write_json,
    write_lines,
)
from crem_jax.processes import WorkerLost, spread

SKIPPED_FILE = "skipped.jsonl"
PLAN_FILE = "prepared.json"
_EVERY = 16  # records from one message of progress to the next


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides the bytes of a prepared data set.

    Attributes:
      source: the source in words. records: how many it has. split: the one split written.
      shard_records: records of the source in a shard.
      max_pixels: larger pictures are made smaller; None keeps every picture's bytes.
    """

    source: str
    records: int
    split: str = "train"
    shard_records: int = 1000
    max_pixels: int | None = None

    @property
    def shards(self) -> int:
        return -(-self.records // self.shard_records)

    def file(self, shard: int) -> str:
        """The name tfds gives the file."""
        return f"{NAME}-{self.split}.array_record-{shard:05d}-of-{self.shards:05d}"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """written: records. skipped: [{"record", "where", "reason"}]. bytes: of the examples."""

    written: int
    skipped: list[dict[str, Any]]
    bytes: int


def prepare(
    source: Any,
    plan: Plan,
    out: str | os.PathLike,
    workers: int,
    max_bad: float = 0.1,
    stamp: Any = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Prepared:
    """Writes a source into a new directory `out`; does nothing where that is done already.

    Args:
      workers: processes. max_bad: the share of records that may be skipped.
      stamp: JSON that changes when the files of the source do; work on others is neither continued
        nor taken for done.
      progress: called with the number of records done since the last call, first with that of an
        earlier run.

    Raises:
      FileExistsError: `out` is something else, or work of another plan or on other files.
      ValueError: too many records cannot be used, or one takes a worker down.
    """
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    if (out / PLAN_FILE).is_file():
        done = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        if done["plan"] != _values(plan):
            raise FileExistsError(f"{out} holds a data set prepared otherwise (see {PLAN_FILE})")
        if done.get("stamp", stamp) != stamp:
            raise FileExistsError(
                f"the files of {plan.source} have changed since {out} was prepared from them; "
                "remove it, or give another directory"
            )
        shutil.rmtree(partial, ignore_errors=True)
        return _done(done, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; expected a new or empty directory")
    (partial / "data").mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        _same_plan(partial, {**_values(plan), "stamp": stamp})
        for file in partial.rglob("*.partial"):
            file.unlink()
        todo = [shard for shard in range(plan.shards) if not _note(partial, shard).exists()]
        progress(plan.records - sum(len(_span(plan, shard)) for shard in todo))
        for shard, message in spread(_WriteShard(source, plan, partial), todo, workers):
            if isinstance(message, WorkerLost):
                span = _span(plan, shard)
                raise RecordError(
                    f"within records {span[0]} to {span[-1]} {message.reason}; `crem doctor` finds "
                    "which one it was, and its index leaves it out"
                )
            progress(message)
        _finish(plan, partial, max_bad, stamp)
        if out.exists():
            out.rmdir()
        os.rename(partial / "data", out)
    shutil.rmtree(partial)
    return _done(json.loads((out / PLAN_FILE).read_text(encoding="utf-8")), out)


@dataclasses.dataclass(frozen=True)
class _WriteShard:
    """Writes one shard, then the note that says it is whole."""

    source: Any
    plan: Plan
    directory: Path

    def __call__(self, shard: int) -> Iterator[int]:
        from array_record.python.array_record_module import ArrayRecordWriter

        final, note = self.directory / "data" / self.plan.file(shard), _note(self.directory, shard)
        written, size, skipped, unreported = 0, 0, [], 0
        with atomic_write(final, fsync=True) as partial:
            writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")
            for index in _span(self.plan, shard):
                try:
                    data = encode_record(self._with_files(read_record(self.source, index)))
                except CremError as error:
                    here = where(self.source, index)
                    skipped.append({"record": index, "where": here, "reason": str(error)})
                else:
                    writer.write(data)
                    written, size = written + 1, size + len(data)
                unreported += 1
                if unreported == _EVERY:
                    yield unreported
                    unreported = 0
            writer.close()
        value = {"written": written, "bytes": size, "skipped": skipped}
        write_bytes(note, json_bytes(value), fsync=True)
        if unreported:
            yield unreported

    def _with_files(self, record: Record) -> Record:
        def stored(item: Item) -> Item:
            return Item(item.text, tuple(file_bytes(p, self.plan.max_pixels) for p in item.images))

        return dataclasses.replace(
            record,
            query=stored(record.query),
            positives=tuple(map(stored, record.positives)),
            negatives=tuple(map(stored, record.negatives)),
        )


def _finish(plan: Plan, partial: Path, max_bad: float, stamp: Any) -> None:
    """Writes what belongs beside the shards."""
    data = partial / "data"
    notes = [json.loads(_note(partial, i).read_text(encoding="utf-8")) for i in range(plan.shards)]
    skipped = [entry for note in notes for entry in note["skipped"]]
    lengths = [note["written"] for note in notes]
    if len(skipped) > max_bad * plan.records or not sum(lengths):
        raise CremError(
            f"{len(skipped)} of {plan.records} records cannot be used; max_bad={max_bad:g} is the "
            f"share that may be skipped; the first: {skipped[0]['reason']}"
        )
    size = sum(note["bytes"] for note in notes)
    write_info(data, plan.split, lengths, size)
    write_lines(data / SKIPPED_FILE, skipped)
    value = {"plan": _values(plan), "stamp": stamp, "written": sum(lengths), "bytes": size}
    write_json(data / PLAN_FILE, value)


def _done(value: dict[str, Any], out: Path) -> Prepared:
    return Prepared(value["written"], list(read_lines(out / SKIPPED_FILE)), value["bytes"])


def _values(plan: Plan) -> dict[str, Any]:
    return dataclasses.asdict(plan)


def _same_plan(partial: Path, ours: dict[str, Any]) -> None:
    """Notes the plan in the directory, or refuses to go on with another one."""
    file = partial / "plan.json"
    if not file.exists():
        write_bytes(file, json_bytes(ours), fsync=True)
        return
    theirs = json.loads(file.read_text(encoding="utf-8"))
    different = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    if different:
        what = "of other source files" if different == ["stamp"] else f"with another {different[0]}"
        raise FileExistsError(
            f"{partial} holds unfinished work {what}; remove it, or give the same source and "
            "options to go on with it"
        )


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Refuses a second process at the same work."""
    import fcntl

    with open(partial / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileExistsError(f"another process is writing {partial}") from error
        yield


def _span(plan: Plan, shard: int) -> range:
    first = shard * plan.shard_records
    return range(first, min(first + plan.shard_records, plan.records))


def _note(directory: Path, shard: int) -> Path:
    return directory / f"shard-{shard:05d}.json"
