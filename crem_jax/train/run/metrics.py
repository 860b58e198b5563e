"""Metrics as JSON lines: one object a line, each with its step; beside them TensorBoard or W&B."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crem_jax.errors import CremError
from crem_jax.files import WriteFailed, write_text


class Writer(Protocol):
    """Another place for metrics."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends to a JSONL file; on resume, lines past the restored step are dropped.

    Args:
      path: of the file; None writes nothing, as every process but one should.
      step: the step the run continues from.
      writers: where else the metrics go.
    """

    def __init__(self, path: str | Path | None, step: int = 0, writers: Sequence[Writer] = ()):
        self._file, self._writers = None, writers
        if path is None:
            return
        path = Path(path)
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line. Raises WriteFailed if the file takes no more."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteFailed(f"{self._file.name}: {error.strerror}") from error
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        for writer in self._writers:
            writer.close()


class TensorBoard:
    """Scalars as TensorBoard reads them, in `directory`.

    Raises:
      CremError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, step: int, recipe: Mapping[str, Any]):
        del recipe
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise CremError(
                "--log tensorboard needs tensorboardX: pip install 'crem_jax[tensorboard]'"
            ) from error
        # What a killed run wrote past its last checkpoint is hidden, not kept twice.
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Scalars to Weights & Biases, resumed under the id kept in `directory`.

    The library's own environment variables (WANDB_PROJECT, WANDB_MODE, …) hold.

    Raises:
      CremError: wandb is not installed.
    """

    def __init__(self, directory: Path, step: int, recipe: Mapping[str, Any]):
        del step
        try:
            import wandb
        except ImportError as error:
            raise CremError("--log wandb needs wandb: pip install 'crem_jax[wandb]'") from error
        kept = directory / "wandb_id.txt"
        if not kept.exists():
            write_text(kept, secrets.token_hex(4) + "\n")
        self._run = wandb.init(
            id=kept.read_text().strip(),
            resume="allow",
            dir=str(directory),
            name=directory.name,
            config=dict(recipe),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


WRITERS = {"tensorboard": TensorBoard, "wandb": WandB}


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


def means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the steps where a metric is a finite number; one that none has is left out.

    `finite`, which every step has, is left out too: it is what skipped steps are counted by.
    """
    columns = {key: np.asarray([step[key] for step in steps], np.float64) for key in steps[0]}
    del columns["finite"]
    kept = {key: column[np.isfinite(column)] for key, column in columns.items()}
    return {key: float(np.mean(column)) for key, column in kept.items() if len(column)}
