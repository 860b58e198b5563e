"""`train(config, workdir)`: reads top to bottom, one banner a stage."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from crem_jax import distributed
from crem_jax import mesh as meshes
from crem_jax.checkpoints.model_directory import save_model_files
from crem_jax.config import ConfigError
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.train import EVAL
from crem_jax.data.batches.shards import iterate
from crem_jax.flops import model_flops
from crem_jax.inference.model import Model
from crem_jax.train import layout
from crem_jax.train.objective.step import TrainState
from crem_jax.train.run import parameter_table, recipe
from crem_jax.train.run.checkpointer import Checkpointer
from crem_jax.train.run.faults import FiniteWatch, Preempted, Preemption, check_room, check_workdir
from crem_jax.train.run.meter import Meter, Trace, device_peak
from crem_jax.train.run.metrics import WRITERS, MetricsLog, means
from crem_jax.train.run.progress import Progress
from crem_jax.train.run.workdir import RunDirectory
from crem_jax.train.setup import Parts, make_parts

Evaluate = Callable[[Model], dict[str, float]]


def train(
    config: TrainConfig | ConfigDict,
    workdir: str | Path | RunDirectory,
    evaluate: Evaluate | None = None,
    *,
    log_to: Sequence[str] = (),
    profile: int = 0,
) -> Model:
    """Trains until `config.steps`, continuing from the last whole checkpoint in `workdir`, if any.

    Args:
      config: of a recipe such as those in `crem_jax.configs`; see docs/config.md.
      workdir: the run directory, created if absent and shared by all processes; or gs://BUCKET/RUN.
      evaluate: called every `config.eval_every` steps; its metrics are logged under `eval/`.
      log_to: names of `metrics.WRITERS` that log the metrics in addition to metrics.jsonl.
      profile: number of steps to trace to WORKDIR/profile after compilation; 0: none.

    Returns:
      The trained model, with the last parameters.

    Raises:
      ValueError: the config is invalid, or `workdir` holds a run of another config.
      OSError: `workdir` cannot be written, is not shared, or has too little space.
      WriteFailed: a later write of the run failed.
      Preempted: SIGTERM arrived, and the run has saved a checkpoint.
      Diverged: `config.max_nonfinite` consecutive steps were not finite.
    """
    config = TrainConfig.of(config)
    best_metric = config.best_metric if evaluate else ""
    run = workdir if isinstance(workdir, RunDirectory) else RunDirectory.open(workdir)
    wanted = config.to_dict()
    distributed.on_main(lambda: recipe.refuse_another(run.local, wanted))
    parts = make_parts(config, run.local)

    # ---------------------------------------------------------------- Mesh
    mesh = meshes.make_mesh(layout.mesh_shape(config.mesh, jax.device_count()))
    layout.check_rows(parts.stream.spec, mesh)
    layout.chunk_owners(mesh)  # raises for a mesh that splits rows unevenly
    abstract = layout.abstract_state(parts, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    # ---------------------------------------------------- State and input
    if run.is_local:
        check_workdir(run.local)
    checkpointer = Checkpointer(run.checkpoints, best_metric)
    if run.is_local:
        check_room(run.local, checkpointer.bytes_needed(abstract))
    batches = functools.partial(iterate, parts.stream, config.data, config.steps, run.local)
    stream = batches()
    restored = checkpointer.restore(abstract, stream)
    if restored is None:
        key = jax.random.key(config.seed)
        state, first = layout.first_state(parts, abstract, parts.weights, key), 0
    else:
        state, first, moved = restored
        if not moved:  # other shards: the examples seen say where to go on
            stream = batches(first)
    samples = parts.stream.spec.samples

    # --------------------------------------------------------- Update step
    update: layout.Step = layout.jit_step(parts, shardings, mesh)
    seed = np.uint32(config.seed % 2**32)

    # ------------------------------------------------------------- Records
    log = MetricsLog(None)
    if distributed.is_main():
        save_model_files(run.local, parts.model, parts.tokenizer)
        recipe.write(run.local, wanted, parts.stream.sources, first)
        table = parameter_table.parameter_table(abstract, parts.rates)
        (run.local / parameter_table.FILE).write_text(table)
        print(table, file=sys.stderr)
        writers = [WRITERS[name](run.local, first, wanted) for name in log_to]
        log = MetricsLog(run.local / "metrics.jsonl", first, writers)

    watch = FiniteWatch(config.max_nonfinite, stream.record_ids)
    trace = Trace(run.local / "profile", first + 3, profile if distributed.is_main() else 0)

    # ---------------------------------------------------------------- Loop
    save_every = config.checkpoint_every or config.eval_every
    meter = Meter(samples, *_work(parts, config.peak_flops))
    step, stop, pending = first, False, []
    bar = Progress(config.steps, first, quiet=not distributed.is_main())
    with jax.set_mesh(mesh), Preemption() as preemption, trace, bar as progress:
        while step < config.steps and not stop:
            step += 1
            trace.at(step)
            with meter.waiting():
                batch = next(stream)
            meter.count(batch)
            batch = layout.put(batch, mesh)
            if step == first + 1:
                update = distributed.compile_everywhere(update, state, batch, seed)
            state, metrics = update(state, batch, seed)
            pending.append(metrics)
            last, stop = step == config.steps, preemption.stop_requested(step)

            if step % config.log_every == 0 or last or stop:
                fetched, pending = jax.device_get(pending), []
                skipped = watch.check(step, np.asarray([each["finite"] for each in fetched]))
                values = means(fetched) | {"skipped_steps": skipped} | stream.stats() | meter.read()
                log.write(step, values)
                progress.show(step, values)
                run.push(now=False, must=False)

            scores = {}
            if evaluate and (last or (step % config.eval_every == 0 and not stop)):
                progress.note("evaluating")
                model = Model(parts.model, _model_params(state), parts.tokenizer)
                scores = {f"{EVAL}{k}": float(v) for k, v in evaluate(model).items()}
                log.write(step, scores)
                progress.show(step, scores)
                meter.restart()

            if step % save_every == 0 or (scores and best_metric) or last or stop:
                named = not best_metric or best_metric in scores
                checkpointer.save(step, state, stream, scores if named else None)
                run.push(must=False)
                if scores and not named:
                    checkpointer.close()
                    raise ConfigError(
                        f"config.best_metric {best_metric!r} is not one of "
                        f"{', '.join(sorted(scores))}; the run has saved at step {step}: it goes "
                        f"on once {run.name}/{recipe.FILE} and the config name one of them"
                    )
                meter.restart()
    stream.close()
    checkpointer.close()
    log.close()
    run.push()
    if step < config.steps:
        raise Preempted(step)
    return Model(parts.model, _model_params(state), parts.tokenizer)


def _work(parts: Parts, peak: float | None) -> tuple[float, float | None]:
    """Model FLOPs of a global step, and what all devices could do in a second, if known.

    Args:
      peak: of one device; None or 0 is what is known of its kind.
    """
    flops = model_flops(parts.model, parts.stream.spec.buckets).training(parts.rates)
    peak = peak or device_peak()
    return flops, peak and peak * jax.device_count()


def _model_params(state: TrainState) -> dict:
    return {name: tree for name, tree in state.params.items() if name != "loss"}
