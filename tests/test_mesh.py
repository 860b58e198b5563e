"""Eight pretended devices train like one, with the parameters split over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MESHES = """
import functools, json, sys
from pathlib import Path
import jax, jax.numpy as jnp
import tiny_run
from crem_jax import mesh as meshes
from crem_jax.train import layout, loop
from crem_jax.train.metrics import read_metrics
from crem_jax.train.setup import make_parts
from crem_jax.train.step import TrainState, init_params, train_step
import flax.linen as nn

config = tiny_run.tiny_config(3)
config.eval_every = 3
config.optim.name = "muon"
parts = make_parts(config)
params = nn.meta.unbox(init_params(parts.model, parts.loss, jax.random.key(config.seed)))
state = TrainState(jnp.zeros((), jnp.int32), params, parts.optimizer.init(params))
step = jax.jit(functools.partial(train_step, seed=config.seed, model=parts.model, loss=parts.loss,
    optimizer=parts.optimizer, learning_rate=parts.learning_rate))
alone = []
for i in range(3):
    state, metrics = step(state, parts.stream.batch(i))
    alone.append(float(metrics["loss"]))
def moments(model, mesh):
    boxed = jax.eval_shape(lambda: init_params(parts.model, parts.loss, jax.random.key(0)))
    shardings = layout.state_shardings(jax.eval_shape(lambda: state), boxed, mesh).opt_state
    pairs = zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings), strict=True)
    return sum(not sharding.is_fully_replicated for _, sharding in pairs)

result = {"alone": alone, "meshes": {}}
for shape in ((8, 1, 1), (2, 2, 2)):
    config.mesh = shape
    workdir = Path(sys.argv[1]) / "-".join(map(str, shape))
    model = loop.train(config, workdir)
    leaves = jax.tree.leaves(model.params)
    result["meshes"][str(shape)] = {
        "losses": [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")],
        "split": sum(not leaf.sharding.is_fully_replicated for leaf in leaves),
        "share": sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        / sum(leaf.size for leaf in leaves),
        "moments": moments(model, meshes.make_mesh(shape)),
    }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> dict:
    """Three steps on one of eight pretended devices and on two meshes of all eight."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    command = [sys.executable, "-c", MESHES, str(tmp_path_factory.mktemp("meshes"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_a_mesh_trains_like_one_device(meshes, shape):
    got = meshes["meshes"][str(shape)]["losses"]
    np.testing.assert_allclose(got, meshes["alone"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_parameters_are_split_over_fsdp_and_tensor(meshes):
    assert meshes["meshes"][str((8, 1, 1))]["split"] == 0
    both = meshes["meshes"][str((2, 2, 2))]
    assert both["split"] >= 10
    assert both["share"] < 0.35


@pytest.mark.slow
def test_the_optimisers_moments_are_split_like_their_parameters(meshes):
    both = meshes["meshes"][str((2, 2, 2))]
    assert both["moments"] >= both["split"]
