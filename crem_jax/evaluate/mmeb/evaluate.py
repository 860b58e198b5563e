"""Evaluates a model on MMEB: reads data sets, encodes, ranks, and writes the results."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crem_jax import distributed
from crem_jax.errors import CremError
from crem_jax.evaluate.embedding_cache import ContentKeys, EmbeddingCache
from crem_jax.evaluate.encoding import LocatedItem, encode_missing
from crem_jax.evaluate.mmeb.cases import Cases, read_cases
from crem_jax.evaluate.mmeb.datasets import DATASETS, Dataset
from crem_jax.evaluate.mmeb.layouts import write_leaderboard, write_score
from crem_jax.evaluate.mmeb.scoring import rank
from crem_jax.evaluate.mmeb.summary import Score, from_json, score, to_json
from crem_jax.evaluate.progress import Counting, quiet
from crem_jax.files import read_json, write_json
from crem_jax.model.pooling import normalise

if TYPE_CHECKING:
    from crem_jax.inference.model import Model

SCORES = "scores.json"
_PATIENCE = 72  # hours that processes wait for the slowest one


def evaluate(
    model: Model,
    name: str,
    datasets: Sequence[Dataset],
    root: str | os.PathLike,
    out: str | os.PathLike,
    *,
    cache: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    k: int | None = None,
    dim: int | None = None,
    limit: int | None = None,
    workers: int = 2,
    counting: Counting = quiet,
) -> tuple[list[Score], dict[str, Any]]:
    """Evaluates a model and writes scores.json, leaderboard.json and the files of both layouts.

    Several processes (`distributed.start`) share the encoding; they need a common `cache`. Scores
    of other data sets that are already in `out`, measured under the same conditions, stay.

    Args:
      name: the model's name. root: the folder of the data sets (`cases.read_cases`).
      cache: folder of the embeddings, by model. image_root: see `cases.read_cases`.
      k: use only the first k chorus tokens; None is all.
      dim: use only the first `dim` components of the embeddings; None is all.
      limit: use only the first `limit` rows of each data set.
      workers: number of threads that decode pictures.

    Returns:
      The scores (on process 0), and the conditions of the evaluation by name.

    Raises:
      CremError, OSError: the data or the model cannot be used, or `out` has scores that were
        measured under other conditions.
    """
    out = Path(out)
    model.runner.validate_encode(k, dim)
    k, width = k or model.config.num_chorus, model.config.text.hidden_size
    conditions = {
        "fingerprint": model.fingerprint,
        "k": k,
        "dim": dim or width,
        "dtype": model.config.dtype,
        "limit": limit,
    }
    earlier = _earlier(out / SCORES, conditions, datasets)
    cases = [read_cases(dataset, root, image_root, limit) for dataset in datasets]
    keys = _keys(cases, root, workers)
    work: dict[bytes, LocatedItem] = {}
    for one, own in zip(cases, keys, strict=True):
        for key, item, place in zip(own, one.items, one.places, strict=True):
            work.setdefault(key, LocatedItem(item, f"{one.dataset.name}: {place}"))
    store = EmbeddingCache(cache, f"{model.fingerprint}-k{k}-{model.config.dtype}", width)
    found = sum(key in store for key in work)
    share = distributed.share()
    encode_missing(model.runner, work, store, k=k, share=share, workers=workers, counting=counting)
    about = {
        "model": name,
        "parameters": model.num_parameters,
        **conditions,
        "items": len(work),
        "embeddings found in the cache": found,
        "embeddings made": len(work) - found,
    }
    scores = list(earlier)
    distributed.meet(hours=_PATIENCE)
    if distributed.is_main():
        store.refresh()
        for one, own in zip(cases, keys, strict=True):
            scores.append(_scored(one, own, store, dim, out))
        scores.sort(key=lambda score: DATASETS.index(score.dataset))
        write_json(out / SCORES, to_json(scores, about))
        write_leaderboard(out, scores, _metadata(model, name, dim or width))
        store.tidy()
    distributed.meet(hours=_PATIENCE)
    return scores, about


def _earlier(path: Path, conditions: Mapping[str, Any], datasets: Sequence[Dataset]) -> list[Score]:
    """The scores of other data sets in a file of scores."""
    if not path.exists():
        return []
    found = read_json(path)
    for name, value in conditions.items():
        if found.get(name) != value:
            raise CremError(
                f"{path} has scores of {name} {found.get(name)}, not {value}: give another --out "
                "(and --cache, to share embeddings), or delete it"
            )
    return [score for score in from_json(found) if score.dataset not in datasets]


def _keys(cases: Sequence[Cases], root: str | os.PathLike, workers: int) -> list[list[bytes]]:
    contents = ContentKeys()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return [contents.of(one.items, pool.map) for one in cases]
        except OSError as error:
            raise CremError(
                f"{error.filename}: {error.strerror}; pictures are looked for in {root} and its "
                "folder images, or where --images says"
            ) from error


def _scored(
    cases: Cases, keys: Sequence[bytes], store: EmbeddingCache, dim: int | None, out: Path
) -> Score:
    missing = sum(key not in store for key in keys)
    if missing:
        raise CremError(
            f"{missing} embeddings are not in {store.directory}: it must be one folder for all "
            "processes"
        )
    ranked = rank(_shortened(store.get(keys), dim), cases.queries, cases.candidates, cases.places)
    result = score(cases, ranked)
    write_score(out, result, cases, ranked)
    return result


def _shortened(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` components, renormalised."""
    if dim is None:
        return vectors
    return normalise(vectors[:, :dim])


def _metadata(model: Model, name: str, dim: int) -> dict[str, Any]:
    """The leaderboard's metadata of a model."""
    return {
        "model_name": name,
        "model_backbone": model.config.vision.style,
        "model_size": round(model.num_parameters / 1e9, 3),
        "embedding_dimension": dim,
        "max_length_tokens": model.config.text.max_positions,
        "model_release_date": "",
        "data_source": "Self-Reported",
        "url": "",
        "report_generated_date": datetime.datetime.now(datetime.UTC).isoformat(),
    }
