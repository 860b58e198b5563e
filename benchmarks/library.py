"""The library at a million vectors: build, disk, search, filters, look-ups, incremental adds.

    python benchmarks/library.py --json                     # 1,000,000 x 1,536; 15 GB under --root
    python benchmarks/library.py --rows 100000 --distributions clustered
    python benchmarks/library.py --model runs/quickstart    # adds the spectrum of a trained model

Vectors are of stated distributions, all L2-normalised around a common mean direction (a fifth of
the variance, as text and picture encoders have it):
  spread     normal, eigenvalues of the covariance falling as 1 / i
  clustered  the same within 2,000 clusters, whose centres have 70 % of the variance
  model      normal with the mean and the eigenvalues of a trained model's emoji embeddings, its
             eigenvalues stretched to the wanted dimension
Queries are fresh draws. Side by side in one run: `Library.search` (which includes fetching the
entries), its first pass alone, LanceDB's exact scan, and a faiss IVF index in memory (float16,
nprobe the least power of two with recall@10 of 0.98). Times are of single queries, warm; "open"
is a new process that opens the library and searches once, its imports not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from crem_jax.library import library as libraries
from crem_jax.library.ann.rotation import Rotation
from crem_jax.library.entry import Entry, LibraryInfo
from crem_jax.library.memory_codec import encode_memory
from crem_jax.types import CHORUS, KV, Memory

TOP = 10
CLUSTERS = 2000
CHUNK = 8192

OPEN = """
import sys, time, numpy as np
from crem_jax.library import library as libraries
from crem_jax.library import lance
import faiss
query = np.load(sys.argv[2])[0]
start = time.perf_counter()
library = libraries.open(sys.argv[1])
library.search(query, None, 10)
print(time.perf_counter() - start)
"""


class Vectors:
    """Draws of one distribution, the same for the same row numbers."""

    def __init__(self, name: str, dim: int, spectrum: np.ndarray | None = None, mean: float = 0.45):
        rng = np.random.default_rng(0)
        values = 1 / np.arange(1, dim + 1) if spectrum is None else _stretched(spectrum, dim)
        self._scale = np.sqrt(values / values.sum()).astype(np.float32)
        self._turn = Rotation(dim, seed=7)  # not the one the library has
        direction = rng.standard_normal(dim).astype(np.float32)
        self._mean = mean / np.sqrt(1 - mean**2) * direction / np.linalg.norm(direction)
        self._centres = None
        if name == "clustered":
            self._centres = self._normal(rng, CLUSTERS)

    def __call__(self, chunk: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([1, chunk])
        drawn = self._normal(rng, count)
        if self._centres is not None:
            own = self._centres[rng.integers(0, CLUSTERS, count)]
            drawn = np.sqrt(0.7) * own + np.sqrt(0.3) * drawn
        drawn = self._turn(drawn) + self._mean
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)

    def chunks(self, rows: int, first: int = 0) -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, rows, CHUNK)):
            yield self(first + number, min(CHUNK, rows - start))

    def _normal(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, len(self._scale)), np.float32) * self._scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--adds", type=int, default=100_000, help="incremental, at the end")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--memories", type=int, default=512, help="blobs of 448 KB to store")
    parser.add_argument("--distributions", default="spread,clustered")
    parser.add_argument("--model", help="a trained model: adds the distribution `model`")
    parser.add_argument("--root", help="where the files go (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    made = {name: Vectors(name, args.dim) for name in args.distributions.split(",") if name}
    if args.model:
        spectrum, mean = _spectrum(args.model)
        made["model"] = Vectors("model", args.dim, spectrum, mean)
    results = {"rows": args.rows, "dim": args.dim, "cores": len(os.sched_getaffinity(0))}
    for name, vectors in made.items():
        with tempfile.TemporaryDirectory(dir=args.root, prefix="crem-library-") as folder:
            results[name] = measure(vectors, args, Path(folder))
        print(f"\n{name}")
        for key, value in results[name].items():
            print(f"  {key:42}{value}")
    if args.json:
        print(json.dumps(results))


def measure(vectors: Vectors, args: argparse.Namespace, root: Path) -> dict:
    """Every figure of one distribution."""
    place, queries = root / "library", vectors(10**6, args.queries).astype(np.float32)
    np.save(root / "queries.npy", queries)
    info = LibraryInfo("0" * 32, "benchmark", 16, args.dim, (16,), "bfloat16", 16)
    lib = libraries.create(place, info)
    out: dict = {}

    start = time.perf_counter()
    _put(lib, vectors.chunks(args.rows), 0)
    out["add, s"] = _since(start)
    start = time.perf_counter()
    lib.compact()
    out["compact and build the index, s"] = _since(start)
    out["disk, entries, GB"] = _gigabytes(place / "entries.lance")
    out["disk, index, GB"] = _gigabytes(place / "ann")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(place), str(root / "queries.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    out["open + first query, s"] = round(float(done.stdout), 3)

    exact = _exact(vectors.chunks(args.rows), queries)
    near = lib._entries._view("vector_16").indexes["vector_16"]
    keys = near.keys
    order = np.argsort(keys)
    names = _names(lib, keys)

    def recall(find: Callable[[np.ndarray], np.ndarray]) -> float:
        hits = [len(set(find(q)) & set(e)) for q, e in zip(queries, exact, strict=True)]
        return round(sum(hits) / (TOP * len(queries)), 4)

    def rows_of(query: np.ndarray) -> np.ndarray:
        return names[order[np.searchsorted(keys, near.search(query, TOP)[0], sorter=order)]]

    out["library, recall@10"] = recall(rows_of)
    out["library, candidates"] = near.state.candidates
    out["library, ms p50/p95"] = _times(lambda q: lib.search(q, None, TOP), queries)
    out["library, first pass and ranking, ms"] = _times(lambda q: near.search(q, TOP), queries)
    verified = lib._entries.recall(TOP, 64)
    out["recall as `crem library verify` has it"] = verified["recall"][16]
    some = queries[:10]
    scan = lib._entries._exact
    out["exact scan (LanceDB), ms"] = _times(lambda q: scan(q, "vector_16", TOP, None), some)
    out |= _faiss(vectors, args.rows, queries, exact, recall)

    for share in (0.01, 0.1, 0.5):
        where = f"width < {int(1000 * share)}"
        times = _times(lambda q, where=where: lib.search(q, None, TOP, where), queries[:30])
        out[f"library, where keeps {share:.0%}, ms"] = times
    ids = np.random.default_rng(2).integers(0, args.rows, 200)
    out["entry by id, ms"] = _times(lambda i: lib.get([str(i)]), ids)
    out |= _memories(lib, args.memories)

    start = time.perf_counter()
    _put(lib, vectors.chunks(args.adds, 2 * 10**6), args.rows)
    out[f"{args.adds} adds, s"] = _since(start)
    start = time.perf_counter()
    lib.search(queries[0], None, TOP)
    out["first query after them, s"] = _since(start)
    out["library after adds, ms"] = _times(lambda q: lib.search(q, None, TOP), queries)
    start = time.perf_counter()
    lib.compact()
    out["compact, s"] = _since(start)
    lib.search(queries[0], None, TOP)
    out["library after compaction, ms"] = _times(lambda q: lib.search(q, None, TOP), queries)
    out["entries at the end"] = len(lib)
    return out


def _put(lib: libraries.Library, chunks: Iterator[np.ndarray], first: int) -> None:
    for number, chunk in enumerate(chunks):
        start = first + number * CHUNK
        lib._entries.put(
            [
                Entry(id=str(start + i), vectors=row[None], width=(start + i) * 7919 % 1000)
                for i, row in enumerate(chunk)
            ]
        )
        if number % 64 == 63:
            lib.tidy()


def _names(lib: libraries.Library, keys: np.ndarray) -> np.ndarray:
    """Row numbers (the ids) in the order of the keys."""
    parts = [(b["key"], b["id"].astype(np.int64)) for b in lib.scan(["key", "id"])]
    own, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(own)
    return ids[order[np.searchsorted(own, keys, sorter=order)]]


def _exact(chunks: Iterator[np.ndarray], queries: np.ndarray) -> np.ndarray:
    """Row numbers [q, TOP] of the true neighbours."""
    scores, rows, first = np.zeros((len(queries), 0), np.float32), None, 0
    for chunk in chunks:
        near = queries @ chunk.astype(np.float32).T
        own = np.broadcast_to(first + np.arange(len(chunk)), near.shape)
        rows = own if rows is None else np.concatenate([rows, own], axis=1)
        scores = np.concatenate([scores, near], axis=1)
        best = np.argsort(-scores, axis=1)[:, :TOP]
        scores, rows = (np.take_along_axis(x, best, axis=1) for x in (scores, rows))
        first += len(chunk)
    return rows


def _faiss(vectors: Vectors, rows: int, queries: np.ndarray, exact: np.ndarray, recall) -> dict:
    """faiss IVF in memory: build, and single queries at recall@10 of 0.98 or the best it has."""
    import faiss

    cells = int(min(1024, max(16, rows // 100)))
    start = time.perf_counter()
    index = faiss.index_factory(queries.shape[1], f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.concatenate([*vectors.chunks(min(rows, 50 * cells))]).astype(np.float32)
    index.train(sample)
    for chunk in vectors.chunks(rows):
        index.add(chunk.astype(np.float32))
    out = {"faiss IVF, build, s": _since(start)}
    faiss.extract_index_ivf(index).parallel_mode = 1  # one query on all cores
    for nprobe in (2**i for i in range(2, 11)):
        if nprobe > cells:
            break
        faiss.extract_index_ivf(index).nprobe = nprobe
        found = recall(lambda q: index.search(q[None], TOP)[1][0])
        if found >= 0.98:
            break
    out["faiss IVF, nprobe"] = faiss.extract_index_ivf(index).nprobe
    out["faiss IVF, recall@10"] = found
    out["faiss IVF, ms"] = _times(lambda q: index.search(q[None], TOP), queries)
    return out


def _memories(lib: libraries.Library, count: int) -> dict:
    """Writes and reads of bfloat16 memories of Qwen2-VL-2B's shape, K = 16."""
    rng = np.random.default_rng(3)
    batch = 64
    shape = (28, batch, 2, 16, 128)
    kv = [rng.standard_normal(shape, np.float32) for _ in range(2)]
    memory = Memory(
        kv=KV(*kv),
        region=np.full((batch, 16), CHORUS, np.int32),
        next_position=np.full(batch, 1000, np.int32),
        chorus=np.zeros((batch, 16, 0), np.float32),
    )
    blobs = encode_memory(memory, "bfloat16")
    start = time.perf_counter()
    for first in range(0, count, batch):
        names = [str(first + i) for i in range(batch)]
        lib._memories.put(names, names, blobs)
    spent = time.perf_counter() - start
    ids = rng.integers(0, count, 100)
    return {
        "memory, bytes": len(blobs[0]),
        "memory, write, ms each": round(1000 * spent / count, 2),
        "memory, read and decode, ms": _times(lambda i: lib.memories([str(i)]), ids),
    }


def _spectrum(directory: str) -> tuple[np.ndarray, float]:
    """(eigenvalues of the covariance, length of the mean) of a model's emoji embeddings."""
    import crem_jax
    from crem_jax.data.sources.registry import make_source

    model = crem_jax.load(directory)
    source = make_source("emoji", {})
    items = [source.record(i, None).query for i in range(len(source))]
    embeddings = model.encode(items)
    mean = embeddings.mean(axis=0)
    values = np.linalg.eigvalsh(np.cov(embeddings.T))[::-1]
    return np.maximum(values, 0), float(np.linalg.norm(mean))


def _stretched(values: np.ndarray, dim: int) -> np.ndarray:
    """Eigenvalues of another number of dimensions, falling alike."""
    where = np.linspace(0, len(values) - 1, dim)
    return np.interp(where, np.arange(len(values)), values)


def _times(call: Callable, arguments: np.ndarray) -> str:
    """p50/p95 in ms, after three that do not count."""
    for argument in arguments[:3]:
        call(argument)
    spent = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        spent.append(1000 * (time.perf_counter() - start))
    return f"{statistics.median(spent):.2f}/{np.quantile(spent, 0.95):.2f}"


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def _gigabytes(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9, 3)


if __name__ == "__main__":
    main()
