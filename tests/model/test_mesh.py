"""Eight pretended devices train like one, with the parameters split over them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from crem_jax.config import ConfigError
from crem_jax.mesh import AXES
from crem_jax.model import crem
from crem_jax.plan.batch import abstract_batch
from crem_jax.train.layout import check_rows, mesh_shape
from tests.support import toy

STEPS = 10
SHAPES = ((8, 1, 1), (2, 4, 1), (2, 2, 2))

MESHES = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from tests.support import tiny_run
from crem_jax import mesh as meshes
from crem_jax.train import layout, loop
from crem_jax.train.run.metrics import read_metrics
from crem_jax.train.setup import make_parts
from crem_jax.train.objective.step import train_step

steps, shapes = json.loads(sys.argv[2])
config = tiny_run.tiny_config(steps)
config.eval_every = steps
config.optim.name = "muon"
parts = make_parts(config)
start = state = layout.fresh_state(parts, jax.random.key(config.seed))
step = jax.jit(lambda s, b: train_step(s, b, seed=config.seed, **parts.step_arguments()))
alone = []
for i in range(steps):
    state, metrics = step(state, parts.stream.batch(i))
    alone.append(float(metrics["loss"]))
moved = max(float(jnp.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params)))

result = {"alone": alone, "moved": moved, "meshes": {}}
for shape in shapes:
    config.mesh = shape
    workdir = Path(sys.argv[1]) / "-".join(map(str, shape))
    model = loop.train(config, workdir)
    leaves = jax.tree.leaves(model.params)
    expected = jax.tree.leaves({name: state.params[name] for name in model.params})
    mesh = meshes.make_mesh(tuple(shape))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout.abstract_state(parts, mesh))
    with jax.set_mesh(mesh):
        step = layout.jit_step(parts, shardings, mesh)
        lowered = step.lower(start, parts.stream.batch(0), np.uint32(0))
    result["meshes"][str(tuple(shape))] = {
        "losses": [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")],
        "apart": max(float(jnp.abs(jax.device_get(a) - b).max())
                     for a, b in zip(leaves, expected, strict=True)),
        "split": sum(not leaf.sharding.is_fully_replicated for leaf in leaves),
        "share": sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        / sum(leaf.size for leaf in leaves),
        "moments": sum(not sharding.is_fully_replicated
                       for sharding in jax.tree.leaves(shardings.opt_state)),
        "constraints": lowered.as_text().count("sdy.sharding_constraint"),
    }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> dict:
    """Ten steps on one of eight pretended devices and on three meshes of all eight."""
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", MESHES, str(tmp_path_factory.mktemp("meshes"))]
    command.append(json.dumps([STEPS, SHAPES]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_activations_are_constrained_wherever_a_mesh_is_in_use():
    config = toy.config()
    batch = abstract_batch(toy.SPEC, config, None)
    params = jax.eval_shape(functools.partial(crem.init, config), jax.random.key(0))

    def constraints(mesh) -> int:
        def forward(params, context, target):
            memory = crem.compress(config, params, context)
            z = jnp.zeros(memory.next_position.shape, bool)
            return crem.decode(config, params, memory, target, z)[0]

        with jax.sharding.use_abstract_mesh(mesh):
            args = params, batch.contexts["picture"], batch.targets["picture"]
            lowered = jax.jit(forward).trace(*args).lower(lowering_platforms=("cpu",))
        return lowered.as_text().count("sdy.sharding_constraint")

    auto = (AxisType.Auto,) * 3
    assert constraints(jax.sharding.AbstractMesh((2, 2, 2), AXES, auto)) >= 18
    assert constraints(jax.sharding.AbstractMesh((1, 1, 1), AXES, auto)) == 0


def test_rows_that_do_not_divide_are_named():
    mesh = jax.sharding.AbstractMesh((2, 8, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(ConfigError, match=r"buckets\.text\.rows = 24 does not .* 2 x 8 = 16"):
        check_rows(toy.SPEC, mesh)
    check_rows(toy.SPEC, jax.sharding.AbstractMesh((2, 2, 4), ("data", "fsdp", "tensor")))


def test_what_is_left_of_the_devices_goes_where_the_config_says():
    assert mesh_shape((2, -1, 2), 16) == (2, 4, 2)
    assert mesh_shape((4, 2, 2), 16) == (4, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mesh_trains_like_one_device(meshes, shape):
    got = meshes["meshes"][str(shape)]
    assert len(got["losses"]) == STEPS
    np.testing.assert_allclose(got["losses"], meshes["alone"], rtol=0, atol=1e-5)
    assert got["apart"] <= 1e-5
    assert meshes["moved"] > 1e-2


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


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activations_are_constrained_in_the_lowered_step(meshes, shape):
    """They vanish silently where the mesh is not in use or the rules are not found."""
    assert meshes["meshes"][str(shape)]["constraints"] >= 40
