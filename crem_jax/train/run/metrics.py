"""Metrics as JSON lines: one object a line, each with its step; beside them TensorBoard or W&B."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crem_jax.errors import CremError
from crem_jax.files import JsonLinesLog, WriteFailed, keep_lines, read_lines, write_text


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
        self._log, self._writers = None, writers
        if path is None:
            return
        keep_lines(path, lambda line: line["step"] <= step)
        self._log = JsonLinesLog(path)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line. Raises WriteFailed if the file takes no more."""
        if self._log is None:
            return
        try:
            self._log.append([{"step": step, **values}])
        except OSError as error:
            raise WriteFailed(f"{self._log.path}: {error.strerror}") from error
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        if self._log is None:
            return
        self._log.close()
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


WRITERS: Mapping[str, Callable[..., Writer]] = {"tensorboard": TensorBoard, "wandb": WandB}


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a metrics file; [] if there is none. Damaged lines are left out."""
    return list(read_lines(path, skip_damaged=True))


def means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the steps where a metric is a finite number; one that none has is left out.

    `finite`, which every step has, is left out too: it is what skipped steps are counted by.
    """
    columns = {key: np.asarray([step[key] for step in steps], np.float64) for key in steps[0]}
    del columns["finite"]
    kept = {key: column[np.isfinite(column)] for key, column in columns.items()}
    return {key: float(np.mean(column)) for key, column in kept.items() if len(column)}
