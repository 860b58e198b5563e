"""What can end a run before its last step: preemption, divergence, a disk that cannot hold it."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from crem_jax import distributed
from crem_jax.errors import CremError

PREEMPTED = 75
"""Exit code of a run that has saved on SIGTERM (EX_TEMPFAIL: the same command goes on)."""

_NAMED = 32  # record ids in an error; a batch may hold thousands


class Preempted(Exception):
    """The run was asked to end by SIGTERM and has saved a checkpoint. step: its last step."""

    def __init__(self, step: int):
        super().__init__(f"saved at step {step} on SIGTERM; the same command goes on from there")
        self.step = step


class Diverged(CremError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Preemption:
    """Notices SIGTERM inside a `with`, so that the run can end between two steps.

    In a job of several processes it is enough that one of them gets the signal: jax passes it to
    all and chooses the step at which they stop together.
    """

    def __enter__(self) -> Preemption:
        self._notice = threading.Event()
        self._alone = jax.process_count() == 1
        # Only the main thread may set handlers; a run in another is ended by its owner.
        self._handles = self._alone and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._notice.set())
        return self

    def __exit__(self, *_) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def stop_requested(self, step: int) -> bool:
        """Whether to save and end after `step`. Call it on every process once per step."""
        if self._alone:
            return self._notice.is_set()
        return multihost_utils.reached_preemption_sync_point(step)


class FiniteWatch:
    """Counts the steps that were skipped because they were not finite.

    Args:
      limit: number of consecutive skipped steps that ends the run; 0: no limit.
      records: step, counted from 0 -> the names of its records.
    """

    def __init__(self, limit: int, records: Callable[[int], Sequence[str]]):
        self.limit, self.records = limit, records
        self.row = 0

    def check(self, last: int, finite: np.ndarray) -> int:
        """How many of the steps up to `last` were skipped.

        Raises:
          Diverged: `limit` consecutive steps were skipped; the message names the records of the
            last of them.
        """
        for step, fine in enumerate(finite, last + 1 - len(finite)):
            self.row = 0 if fine else self.row + 1
            if self.limit and self.row >= self.limit:
                names = list(self.records(step - 1))  # the stream counts from 0
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                raise Diverged(
                    f"the loss or gradient of {self.row} steps in a row (config.max_nonfinite) up "
                    f"to step {step} was not finite; the parameters are as they were before them. "
                    f"Records of step {step}: {', '.join(names[:_NAMED])}{more}"
                )
        return int(np.sum(~np.asarray(finite, bool)))


def check_workdir(directory: Path) -> None:
    """Checks at the start that checkpoints can be written to the run directory.

    Raises:
      OSError: it cannot be written, or is not shared by all processes.
    """
    probe = directory / ".written-by-process-0"

    def write() -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("every process of the run must see this file\n")
        except OSError as error:
            raise OSError(f"--workdir {directory} cannot be written: {error.strerror}") from error

    distributed.on_main(write)
    visible = probe.exists()
    if not distributed.all_agree(visible):
        reason = "another process" if visible else f"process {jax.process_index()}"
        raise OSError(f"--workdir {directory} is not shared: {reason} cannot see process 0's files")
    distributed.on_main(probe.unlink)


def check_room(directory: Path, needed: int) -> None:
    """Raises OSError if the disk of `directory` has no room for `needed` bytes of checkpoints."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"--workdir {directory} has {free / 1e9:.3g} GB free; the checkpoints of this run need "
            f"up to {needed / 1e9:.3g} GB"
        )
