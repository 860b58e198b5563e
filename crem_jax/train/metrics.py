"""Metrics as JSON lines: one object a line, each with its step."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """Appends to a JSONL file; on resume, lines past the restored step are dropped.

    Args:
      path: of the file. step: the step the run continues from.
    """

    def __init__(self, path: str | Path, step: int = 0):
        path = Path(path)
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a metrics file; [] if there is none. A line cut off by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
