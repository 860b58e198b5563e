"""Checkpoints of a run, by orbax: RUN/checkpoints/N/{params, optimizer, data}."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from crem_jax import distributed
from crem_jax.checkpoints.model_directory import NO_DAMAGE, score
from crem_jax.data.batches.shards import Shards
from crem_jax.errors import CremError
from crem_jax.files import WriteFailed
from crem_jax.train.objective.step import TrainState

KEPT = 2
"""Newest checkpoints kept, so that one may be damaged."""


class Checkpointer:
    """Asynchronous checkpoints of a run: the last two and the best by `metric` are kept.

    Args:
      directory: the run's `checkpoints`, shared by all processes or in a bucket.
      metric: name of the evaluation metric, higher is better.
    """

    def __init__(self, directory: str | Path, metric: str | None = None):
        self.metric = metric
        self.directory = epath.Path(directory)
        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(n=KEPT), *([best] if metric else [])]
                ),
                best_fn=score,
                cleanup_tmp_directories=True,  # of saves that a kill cut off
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        stream: Shards,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts a save; returns when the state has been copied to the host.

        Raises:
          WriteFailed: this save, or the one before it, could not be written.
        """
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(_flat(state)),
            "data": grain.checkpoint.CheckpointSave(_Position(stream)),
        }
        scored = {"score": metrics[self.metric]} if metrics and self.metric else None
        with self._writing():
            self.manager.save(step, args=ocp.args.Composite(**items), metrics=scored)

    def bytes_needed(self, state: TrainState) -> int:
        """What the checkpoints may yet take: those kept, and one that is being written."""
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        most = KEPT + bool(self.metric) + 1
        return size * max(most - len(self.manager.all_steps()), 1)

    def restore(self, state: TrainState, stream: Shards) -> tuple[TrainState, int, bool] | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        Damaged ones that are newer are moved to RUN/checkpoints-damaged, with a notice.

        Args:
          state: ShapeDtypeStructs with the shardings wanted; those it was saved with may differ.
          stream: is moved to where the checkpoint left it, if that knows its shards.

        Returns:
          The state, its step, and whether the stream was moved there too.

        Raises:
          CremError: there are checkpoints, and all are damaged.
          MemoryError, PermissionError, JaxRuntimeError: this process has no room for one, or may
            not read it; nothing is moved.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            items, reason = None, ""
            for _ in range(2):  # a disk or a bucket may fail once
                try:
                    items = self._read(step, state)
                    break
                except (MemoryError, PermissionError):
                    raise
                except Exception as error:  # orbax and tensorstore have no class for bad data
                    if any(word in str(error) for word in NO_DAMAGE):
                        raise
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
            if distributed.all_agree(items is not None) and items is not None:
                self._set_aside(damaged, step)
                return self._restored(state, stream, step, *items)
            damaged[step] = reason or "another process cannot read it"
        if damaged:
            listed = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise CremError(f"every checkpoint in {self.directory} is damaged: {listed}")
        return None

    def _read(self, step: int, state: TrainState) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Parameters, optimiser and positions of the stream, as orbax and grain have stored them.

        Item by item, without the manager's barriers: one process alone may fail here.
        """
        where = self.directory / str(step)
        arrays = ocp.StandardCheckpointHandler()
        params = arrays.restore(where / "params", args=ocp.args.StandardRestore(state.params))
        optimizer = arrays.restore(where / "optimizer", args=ocp.args.StandardRestore(_flat(state)))
        states: dict[str, Any] = {}
        for file in (where / "data").glob("process_*.json"):
            states |= json.loads(file.read_text())
        return params, optimizer, states

    @staticmethod
    def _restored(
        state: TrainState, stream: Shards, step: int, params: Any, optimizer: Any, states: Any
    ) -> tuple[TrainState, int, bool]:
        leaves = [optimizer[f"{i:04d}"] for i in range(len(optimizer) - 1)]
        opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
        moved = set(stream.get_state()) <= set(states)
        if moved:
            stream.set_state(states)
        return TrainState(optimizer["step"], params, opt_state), step, moved

    def _set_aside(self, damaged: dict[int, str], whole: int) -> None:
        if not damaged:
            return
        aside = self.directory.parent / "checkpoints-damaged"

        def move() -> None:
            aside.mkdir(parents=True, exist_ok=True)
            for step, reason in damaged.items():
                if (aside / str(step)).exists():
                    (aside / str(step)).rmtree()
                (self.directory / str(step)).rename(aside / str(step))
                print(
                    f"checkpoint {step} is damaged ({reason}); it is now in {aside}, and the run "
                    f"goes on from checkpoint {whole}",
                    file=sys.stderr,
                )

        distributed.on_main(move)
        self.manager.reload()

    def close(self) -> None:
        """Waits for every started save.

        Raises:
          WriteFailed: one could not be written.
        """
        with self._writing():
            self.manager.close()

    @contextlib.contextmanager
    def _writing(self):
        """Errors of the file systems' many clients as one kind."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WriteFailed(
                f"a checkpoint could not be written to {self.directory}: {reason}; those before "
                "it are whole, and the same command goes on from the last"
            ) from error


class _Position:
    """Where a stream is now, as grain's handler wants it; it asks in a thread, some time later."""

    def __init__(self, stream: Shards):
        self._state = json.dumps(stream.get_state()).encode()

    def get_state(self) -> bytes:
        return self._state


def _flat(state: TrainState) -> dict[str, Any]:
    """The optimiser's leaves by number: its own structure is made of code, not of names."""
    leaves = jax.tree.leaves(state.opt_state)
    return {"step": state.step} | {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}
