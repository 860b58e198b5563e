"""`train(config, workdir)`: reads top to bottom, one banner a stage."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from crem_jax import mesh as meshes
from crem_jax import trees
from crem_jax.api import Model
from crem_jax.checkpoint import Checkpointer, save_model_files
from crem_jax.train.metrics import MetricsLog
from crem_jax.train.progress import Progress
from crem_jax.train.setup import make_parts
from crem_jax.train.step import TrainState, init_params, init_state, train_step
from crem_jax.types import Batch

RECIPE_FILE = "recipe.json"
Evaluate = Callable[[Model], dict[str, float]]


def train(config: ConfigDict, workdir: str | Path, evaluate: Evaluate | None = None) -> Model:
    """Trains until `config.steps`, continuing from the last checkpoint in `workdir`, if any.

    Args:
      config: see `configs/`. workdir: the run directory, made if absent.
      evaluate: called every `config.eval_every` steps; its metrics are logged under `eval/`.

    Returns:
      The trained model, with the last parameters.

    Raises:
      ValueError: the config makes no sense, or `workdir` holds a run of another config.
    """
    workdir = Path(workdir)
    recipe = json.loads(config.to_json_best_effort())
    _refuse_another(workdir / RECIPE_FILE, recipe)
    parts = make_parts(config)

    # ---------------------------------------------------------------- Mesh
    mesh = meshes.make_mesh(_mesh_shape(config.mesh))
    whole, by_row = meshes.replicated(mesh), meshes.rows(mesh)

    # --------------------------------------------------------------- State
    fresh = functools.partial(init_state, parts.model, parts.loss, parts.optimizer, parts.frozen)

    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(lambda: init_params(parts.model, parts.loss, jax.random.key(0)))
    shardings = _state_shardings(jax.eval_shape(fresh, key), abstract, mesh)
    state = jax.jit(fresh, out_shardings=shardings)(key)

    # --------------------------------------------------------------- Input
    stream = parts.stream.iterate(config.steps)

    # ---------------------------------------------------------- Checkpoint
    save_model_files(workdir, parts.model, parts.tokenizer)
    (workdir / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n")
    best_metric = config.get("best_metric") if evaluate else None
    checkpointer = Checkpointer(workdir, best_metric)
    restored = checkpointer.restore(state, stream)
    first = 0
    if restored is not None:
        state, first = restored

    # --------------------------------------------------------- Update step
    update = jax.jit(
        functools.partial(train_step, seed=config.seed, **parts.step_arguments()),
        in_shardings=(shardings, None),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )

    # ---------------------------------------------------------------- Loop
    log = MetricsLog(workdir / "metrics.jsonl", first)
    samples = sum(parts.stream.spec.records.values())
    with jax.set_mesh(mesh), Progress(config.steps, first, samples) as progress:
        pending: list[dict[str, jax.Array]] = []
        since = time.perf_counter()
        for step in range(first + 1, config.steps + 1):
            state, metrics = update(state, _put(next(stream), by_row, whole))
            pending.append(metrics)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                values = _mean(pending)
                took = time.perf_counter() - since
                values["samples_per_second"] = samples * len(pending) / took
                log.write(step, values)
                progress.show(step, values)
                pending, since = [], time.perf_counter()
            if step % config.eval_every == 0 or last:
                scores = {}
                if evaluate is not None:
                    progress.note("evaluating")
                    model = Model(parts.model, _model_params(state), parts.tokenizer)
                    scores = {f"eval/{k}": float(v) for k, v in evaluate(model).items()}
                    log.write(step, scores)
                    progress.show(step, scores)
                checkpointer.save(step, state, stream, scores or None)
                since = time.perf_counter()
    checkpointer.close()
    log.close()
    return Model(parts.model, _model_params(state), parts.tokenizer)


def _model_params(state: TrainState) -> dict:
    return {name: state.params[name] for name in ("backbone", "vision")}


def _refuse_another(path: Path, recipe: dict) -> None:
    """Raises if the run there has another recipe."""
    if not path.exists():
        return
    there, here = (_leaves(values) for values in (json.loads(path.read_text()), recipe))
    different = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if different:
        raise ValueError(
            f"{path.parent} holds a run with another config (different: {', '.join(different)}); "
            "give another --workdir, or the same config to resume"
        )


def _leaves(recipe: dict) -> dict[str, object]:
    return {path.replace("/", "."): leaf for path, leaf in trees.flatten(recipe).items()}


def _mesh_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """One -1 is replaced by what is left of the devices."""
    fixed = int(np.prod([size for size in shape if size != -1]))
    return tuple(jax.device_count() // fixed if size == -1 else size for size in shape)


def _state_shardings(state: TrainState, boxed_params, mesh) -> TrainState:
    """The optimiser's moments are laid out like the parameters whose paths theirs end with."""
    whole = meshes.replicated(mesh)
    by_param = meshes.param_shardings(boxed_params, mesh)
    named = trees.flatten(by_param)

    def of(path, _):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        ends = ("/".join(keys[i:]) for i in range(len(keys)))
        return next((named[end] for end in ends if end in named), whole)

    opt_state = jax.tree_util.tree_map_with_path(of, state.opt_state)
    return TrainState(whole, by_param, opt_state)


def _put(batch: Batch, by_row, whole) -> Batch:
    """Host arrays to the mesh, every leading axis split over it."""

    def put(tree, sharding):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
        )

    return Batch(
        contexts=put(batch.contexts, by_row),
        targets=put(batch.targets, by_row),
        query_row=put(batch.query_row, by_row),
        positive_hash=put(batch.positive_hash, by_row),
        candidate_row=put(batch.candidate_row, by_row),
        candidate_hash=put(batch.candidate_hash, by_row),
    )


def _mean(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means over the steps that have the metric; one that none has is left out."""
    fetched = jax.device_get(pending)
    columns = {key: np.asarray([metrics[key] for metrics in fetched]) for key in fetched[0]}
    return {k: float(np.nanmean(v)) for k, v in columns.items() if not np.isnan(v).all()}
