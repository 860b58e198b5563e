"""Homogeneous data: question-answer pairs that a teacher writes about retrieval records.

The paper (arXiv 2602.19091, section 3.3) trains both losses on one context: pairs are synthesised
on the retrieval data, so that a query is compressed once, found by one loss and asked about by the
other. A record goes out as it came in, with the pairs added to its `turns`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from crem_jax.data.images.decode import PictureError, open_picture
from crem_jax.data.records import Item, Picture, Record
from crem_jax.data.sources.base import Source, read_record
from crem_jax.data.tools.qa_pairs import Task, Turn, filtered, without_record_text
from crem_jax.data.tools.teachers import Teacher
from crem_jax.errors import CremError
from crem_jax.files import JsonLinesLog, read_lines, write_bytes


@dataclasses.dataclass
class Report:
    """What a run did. dropped: pairs by reason; rejected: records left without a pair."""

    before: int = 0
    written: int = 0
    pairs: int = 0
    rejected: int = 0
    failed: int = 0
    unreadable: int = 0
    repeated: int = 0
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    last_error: str = ""


def synthesize(
    source: Source,
    out: str | os.PathLike,
    teacher: Teacher,
    task: Task,
    batch: int = 16,
    progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Writes the source's records with the teacher's pairs to `out`, a JSONL for kind `jsonl`.

    Records whose id is in `out`, or among the rejected in OUT.rejected.jsonl, are left alone: the
    same call goes on where another one ended. What the teacher failed on is tried again then.
    Pictures that are no files are saved in a folder beside `out`.

    Raises:
      ValueError: `out` holds something else, another process writes it, or the teacher failed on a
        whole batch.
      OSError: `out` cannot be written.
    """
    report = Report()
    with _Output(Path(out)) as output:
        report.before = len(output.done)
        for records in _batches(source, output.done, batch, report, progress):
            requests = [task.requests(record) for record in records]
            answers = iter(teacher([request for each in requests for request in each]))
            failed = 0
            for record, each in zip(records, requests, strict=True):
                answered = [next(answers) for _ in each]
                errors = [one for one in answered if isinstance(one, Exception)]
                got = [one for one in answered if not isinstance(one, Exception)]
                if errors:
                    if any(isinstance(error, PictureError) for error in errors):
                        report.unreadable += 1
                    else:
                        failed += 1
                    report.last_error = f"record {record.id!r}: {errors[0]}"
                    continue
                prompt = "" if task.questions else without_record_text(each[0].text, record)
                turns, reasons = filtered(task.read(got), prompt)
                report.dropped.update(reasons)
                if turns:
                    output.write(record, turns)
                    report.written, report.pairs = report.written + 1, report.pairs + len(turns)
                else:
                    output.reject(record, reasons or ["no pairs in the answer"], got)
                    report.rejected += 1
            output.flush()
            report.failed += failed
            progress(len(records))
            if failed == len(records):
                raise CremError(
                    f"the teacher failed on a whole batch, last on {report.last_error}; "
                    "the same command goes on from here"
                )
    return report


def _batches(
    source: Source,
    done: set[str],
    size: int,
    report: Report,
    progress: Callable[[int], None],
) -> Iterator[list[Record]]:
    """The records that are still to do, so many at a time."""
    waiting: list[Record] = []
    earlier, seen = frozenset(done), set()
    for index in range(len(source)):
        try:
            record = read_record(source, index)
        except CremError as error:
            report.unreadable += 1
            report.last_error = str(error)
            progress(1)
            continue
        if record.id in earlier or record.id in seen:
            report.repeated += record.id in seen
            progress(1)
            continue
        seen.add(record.id)
        waiting.append(record)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


class _Output:
    """The JSONL being written, that of rejected records, and a folder for pictures."""

    def __init__(self, path: Path):
        self.path = path
        self.rejected = path.with_name(path.stem + ".rejected.jsonl")
        self.pictures = path.with_name(path.stem + "_pictures")
        self._waiting: list[tuple[JsonLinesLog, list[dict[str, Any]]]] = []

    def __enter__(self) -> _Output:
        with contextlib.ExitStack() as stack:
            for path in (self.path, self.rejected):
                log = stack.enter_context(JsonLinesLog(path, fsync=True, exclusive=True))
                self._waiting.append((log, []))
            self.done = _ids(self.path) | _ids(self.rejected)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with self._open:
            self.flush()
        if not self.rejected.stat().st_size:
            self.rejected.unlink()

    def write(self, record: Record, turns: Sequence[Turn]) -> None:
        """Adds a record with its pairs."""
        line: dict[str, Any] = {"id": record.id, "query": self._item(record.query)}
        for key in ("positives", "negatives"):
            items = [self._item(item) for item in getattr(record, key)]
            line |= {key: items} if items else {}
        line["turns"] = [{"question": q, "answer": a} for q, a in (*record.turns, *turns)]
        line |= {"metadata": dict(record.metadata)} if record.metadata else {}
        self._waiting[0][1].append(line)

    def reject(self, record: Record, reasons: Sequence[str], answers: Sequence[str]) -> None:
        """Notes a record that has no pair worth keeping."""
        line = {"id": record.id, "reasons": list(reasons), "answers": list(answers)}
        self._waiting[1][1].append(line)

    def flush(self) -> None:
        """What was written is on the disk when this returns."""
        for log, lines in self._waiting:
            if lines:
                log.append(lines)
                lines.clear()

    def _item(self, item: Item) -> Any:
        paths = [self._picture(image) for image in item.images]
        if not paths:
            return item.text
        where = {"image": paths[0]} if len(paths) == 1 else {"images": paths}
        return where | ({"text": item.text} if item.text else {})

    def _picture(self, picture: Picture) -> str:
        """Path of a picture, relative to the JSONL's folder."""
        if isinstance(picture, str | os.PathLike):
            return os.path.relpath(picture, self.path.parent)
        if isinstance(picture, bytes):
            data, suffix = picture, (Image.open(io.BytesIO(picture)).format or "png").lower()
        else:
            buffer = io.BytesIO()
            open_picture(picture).save(buffer, "PNG")
            data, suffix = buffer.getvalue(), "png"
        name = f"{hashlib.blake2b(data, digest_size=12).hexdigest()}.{suffix}"
        path = self.pictures / name
        if not path.exists():
            write_bytes(path, data)
        return os.path.join(self.pictures.name, name)


def _ids(path: Path) -> set[str]:
    """The ids in a JSONL that this command wrote."""
    ids = set()
    for number, value in enumerate(read_lines(path), start=1):
        try:
            ids.add(str(value["id"]))
        except (KeyError, TypeError):
            raise CremError(
                f"{path} line {number} is no record with an id; expected a file that "
                "`crem synthesize` wrote, or none"
            ) from None
    return ids
