"""Arrays that are read piece by piece."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from crem_jax import lazy_array
from crem_jax.checkpoints import lazy_orbax
from crem_jax.convert.transforms import copy
from crem_jax.lazy_array import LazyArray

SHAPES = [(7,), (5, 3), (4, 6, 5), (3, 40, 2, 4)]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(lazy_array, "PIECE_BYTES", 300)
    monkeypatch.setattr(lazy_array, "CHUNK_BYTES", 90)


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_cover_an_array_once_in_whole_chunks(shape, small_pieces):
    array = lazy_array.of(np.zeros(shape, np.float32))
    seen = np.zeros(shape, int)
    unit = array.chunks()[0]
    for index in array.pieces():
        seen[index] += 1
        assert index[0].start % unit == 0
        assert seen[index].nbytes // 2 <= max(300, unit * array.nbytes // shape[0])
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lazy_array_reads_as_the_array_it_stands_for(shape, rng, small_pieces):
    array = rng.standard_normal(shape).astype(np.float32)
    standing = lazy_array.of(array)
    np.testing.assert_array_equal(standing, array)
    np.testing.assert_array_equal(standing[1:3], array[1:3])
    half = standing.astype(ml_dtypes.bfloat16)
    assert half[...].tobytes() == array.astype(ml_dtypes.bfloat16).tobytes()


def test_one_changed_bit_makes_arrays_differ(rng, small_pieces):
    array = rng.standard_normal((40, 5)).astype(np.float32)
    other = array.copy()
    assert lazy_array.same(lazy_array.of(array), lazy_array.of(other))
    other.view(np.uint32)[39, 4] ^= 1
    assert not lazy_array.same(lazy_array.of(array), lazy_array.of(other))
    assert not lazy_array.same(lazy_array.of(array), lazy_array.of(array[:39]))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float16])
def test_copies_of_transposed_views_equal_numpys(axes, dtype, rng):
    view = rng.standard_normal((300, 20, 70)).astype(dtype).transpose(axes)[1:, :, 2:]
    for target in (np.dtype(dtype), np.dtype(np.float32)):
        got = copy(view, np.empty(view.shape, target))
        assert got.tobytes() == np.ascontiguousarray(view, target).tobytes()


def test_orbax_keeps_lazy_arrays_bit_by_bit_and_others_read_them(rng, tmp_path, small_pieces):
    import orbax.checkpoint as ocp

    tree = {
        "a": {"b": rng.standard_normal((9, 33)).astype(np.float32)},
        "c": rng.standard_normal((4, 30, 7)).astype(ml_dtypes.bfloat16),
    }
    with ocp.Checkpointer(lazy_orbax.handler()) as checkpointer:
        wanted = {"a": {"b": lazy_array.of(tree["a"]["b"])}, "c": lazy_array.of(tree["c"])}
        checkpointer.save(tmp_path / "x", args=ocp.args.PyTreeSave(wanted))
    back = lazy_orbax.load(tmp_path / "x")
    assert isinstance(back["c"], LazyArray)
    assert lazy_array.same(back["c"], wanted["c"]) and lazy_array.same(
        back["a"]["b"], wanted["a"]["b"]
    )
    plain = ocp.PyTreeCheckpointer().restore(tmp_path / "x")
    assert plain["c"].tobytes() == tree["c"].tobytes()
    np.testing.assert_array_equal(plain["a"]["b"], tree["a"]["b"])


def test_what_training_saves_is_read_lazily(rng, tmp_path):
    import jax
    import orbax.checkpoint as ocp

    array = rng.standard_normal((9, 33)).astype(np.float32)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        saved = {"a": {"b": jax.device_put(array)}}
        checkpointer.save(tmp_path / "x", args=ocp.args.StandardSave(saved))
    back = lazy_orbax.load(tmp_path / "x")["a"]["b"]
    assert isinstance(back, LazyArray)
    np.testing.assert_array_equal(back[2:4, 5:], array[2:4, 5:])


ON_A_MESH = """
import json, sys
import jax, numpy as np
from crem_jax import lazy_array, mesh as meshes, trees
from crem_jax.convert import huggingface
from crem_jax.lazy_array import LazyArray
from crem_jax.model import crem

read = {}
config, params, _ = huggingface.open_hf(sys.argv[1])
def counted(path, leaf):
    def fetch(index):
        array = leaf.read(index)
        read[path] = max(read.get(path, 0), array.size / leaf.size)
        return array
    return LazyArray(leaf.shape, leaf.dtype, fetch)
params = trees.unflatten({p: counted(p, leaf) for p, leaf in trees.flatten(params).items()})
shardings = meshes.param_shardings(crem.abstract(config), meshes.make_mesh((2, 2, 2)))
spread = lazy_array.materialise(params, np.float32, shardings)
whole = lazy_array.materialise(params, np.float32)
same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), spread, whole)
kept = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), spread, shardings)
read.clear()
lazy_array.materialise(params, np.float32, shardings)
print(json.dumps({"same": all(jax.tree.leaves(same)), "kept": all(jax.tree.leaves(kept)),
    "read": read}))
"""


def test_a_hugging_face_directory_loads_onto_a_mesh_shard_by_shard(tmp_path, seed):
    from tests.support import hf_models

    directory = hf_models.oracle(tmp_path, seed, False).directory
    flags = "--xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-c", ON_A_MESH, str(directory)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert out.returncode == 0, out.stderr[-2000:]
    result = json.loads(out.stdout.splitlines()[-1])
    assert result["same"] and result["kept"]
    assert result["read"]["backbone/head"] == 0.25
    assert result["read"]["backbone/layers/mlp/down/kernel"] == 0.25
