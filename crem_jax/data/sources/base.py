"""The protocol of data sources, and the base class of those that read files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from crem_jax.data.records import Record, RecordError
from crem_jax.errors import CremError


class Source(Protocol):
    """A random-access data set. It must be picklable, for worker processes.

    `record` is a pure function of its arguments. It raises a ValueError or an OSError for a record
    that cannot be used, which is then skipped and logged. Other exceptions end the run. It is
    called through `read_record` only.
    """

    def __len__(self) -> int: ...

    def record(self, index: int, rng: np.random.Generator | None) -> Record: ...


def read_record(source: Source, index: int, rng: np.random.Generator | None = None) -> Record:
    """`source.record(index, rng)`, the boundary at which a source's errors become ours.

    Raises:
      CremError: the record cannot be used. A ValueError or an OSError of the source becomes a
        RecordError. Any other exception is a bug, and passes with a note that names the record.
    """
    try:
        return source.record(index, rng)
    except CremError:
        raise
    except (ValueError, OSError) as error:
        raise RecordError(str(error) or type(error).__name__) from error
    except Exception as error:
        error.add_note(f"while {type(source).__name__} read its record {index}")
        raise


class FileSource:
    """Random access to stored records. Subclasses have `__len__`, `read` and `where`.

    Attributes:
      left_out: reason -> number of rows excluded by the rules of the format.
    """

    left_out: Mapping[str, int] = {}

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def read(self, index: int) -> Record:
        """Reads record `index`, deterministically.

        Raises:
          RecordError: the record cannot be used.
        """
        raise TypeError(f"{type(self).__name__} reads nothing")

    def where(self, index: int) -> str:
        """The location of record `index`, such as FILE:LINE, for error messages."""
        return f"record {index}"

    def problems(self, index: int) -> Sequence[str]:
        """Warnings about record `index`, which can be used nevertheless."""
        return ()

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Record `index`; with `rng`, a random positive comes first, the one that is encoded."""
        record = self.read(index)
        if rng is None or len(record.positives) < 2:
            return record
        first = int(rng.integers(len(record.positives)))
        turned = record.positives[first:] + record.positives[:first]
        return dataclasses.replace(record, positives=turned)
