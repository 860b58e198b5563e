"""A run's training time and peak memory, stored in WORKDIR/timing.json."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

from crem_jax.files import WriteFailed, write_json
from crem_jax.train.run.meter import peak_rss_mb

FILE = "timing.json"
_WRITE_EVERY = 5.0  # seconds, the most that a killed run can lose


def read_timing(directory: str | Path) -> dict[str, float]:
    """A run's {"train_seconds", "peak_rss_mb"}, in seconds and megabytes; {} if not recorded."""
    try:
        return json.loads((Path(directory) / FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}


class TrainingClock:
    """A context manager that adds the time spent inside to a run's timing.

    Args:
      workdir: the run directory; nothing is written before it exists.

    Raises:
      WriteFailed: the file cannot be written when the `with` ends.
    """

    def __init__(self, workdir: str | Path):
        self._workdir = Path(workdir)
        self._before = read_timing(workdir)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)

    def __enter__(self) -> TrainingClock:
        self._since = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self._write()

    def _keep_writing(self) -> None:
        while not self._over.wait(_WRITE_EVERY):
            with contextlib.suppress(WriteFailed):
                self._write()

    def _write(self) -> None:
        if not self._workdir.is_dir():
            return
        seconds = time.perf_counter() - self._since
        timing = {
            "train_seconds": round(self._before.get("train_seconds", 0.0) + seconds, 1),
            "peak_rss_mb": round(max(self._before.get("peak_rss_mb", 0.0), peak_rss_mb()), 1),
        }
        try:
            write_json(self._workdir / FILE, timing)
        except OSError as error:
            raise WriteFailed(f"{self._workdir / FILE}: {error.strerror}") from error
