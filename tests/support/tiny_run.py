"""The emoji recipe made tiny and fed with `toy.Toy`; as a script it trains in its own process.

python tests/support/tiny_run.py WORKDIR STEPS [KEY=JSON …]
    [--distributed=HOST:PORT,N,I] [--interleave]
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from crem_jax.configs import emoji
from crem_jax.data.sources import registry
from crem_jax.train.run.metrics import read_metrics
from tests.support import toy

registry.register("toy", toy.Toy)
ROOT = Path(__file__).parents[2]


def tiny_config(steps: int = 12) -> ConfigDict:
    """A second of training after compilation; a checkpoint every 2 steps, every step logged."""
    config = emoji.get_config()
    config.steps, config.log_every, config.eval_every = steps, 1, 2
    config.max_nonfinite, config.checkpoint_every = 3, 2
    config.optim.update(name="adamw", warmup=2)
    config.model.text.update(
        hidden_size=32,
        intermediate_size=48,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        mrope_section=(2, 3, 3),
        max_positions=128,
    )
    config.model.vision.update(
        depth=1, embed_dim=16, num_heads=2, min_pixels=16 * 16, max_pixels=64 * 64
    )
    config.model.update(num_chorus=4, unroll=1)
    config.data = dict(
        sources=dict(toy=dict(kind="toy")),
        records=dict(toy.SPEC.records),
        buckets={name: vars(bucket) for name, bucket in toy.SPEC.buckets.items()},
        candidates=toy.SPEC.candidates,
        workers=0,
        shards=0,
    )
    return config


def start(
    workdir: Path, cache: Path, steps: int, *words: str, devices: int = 1
) -> subprocess.Popen:
    """Trains in a process of its own.

    Args:
      cache: of compiled code, so that only the first of several runs compiles.
      words: KEY=JSON to change keys of the config, or flags.
      devices: so many pretended ones.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, str(workdir), str(steps), *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def start_several(workdir: Path, cache: Path, steps: int, count: int, *words: str, devices: int):
    """The same run on `count` processes of `devices` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            cache,
            steps,
            *words,
            f"--distributed=127.0.0.1:{port},{count},{i}",
            devices=devices,
        )
        for i in range(count)
    ]


def until(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until the run has logged `step`."""
    while not any(line["step"] >= step for line in read_metrics(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.002)


def finish(*processes: subprocess.Popen) -> None:
    """Waits for processes that must succeed."""
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]


def saved(workdir: Path, step: int) -> tuple[dict, dict]:
    """Parameters and optimiser state of the last step, which must be `step`, as numpy arrays."""
    folder = workdir.absolute() / "checkpoints"
    assert max(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) == step

    def read(item: str) -> dict:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder / str(step) / item).item_metadata.tree
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder / str(step) / item, restore_args=wanted)

    return read("params"), read("optimizer")


def interleave() -> None:
    """Has the mesh take a device of each process in turn, as the wiring of a pod may want it."""
    from crem_jax import mesh as meshes

    ordered = meshes.make_mesh

    def make_mesh(shape):
        devices = np.array(jax.devices()).reshape(jax.process_count(), -1).T
        return jax.sharding.Mesh(
            devices.reshape(shape), meshes.AXES, axis_types=ordered(shape).axis_types
        )

    meshes.make_mesh = make_mesh


def main(workdir: str, steps: str, *words: str) -> int:
    """What `crem train` does, with the tiny config."""
    from crem_jax import distributed
    from crem_jax.train.loop import train
    from crem_jax.train.run.faults import PREEMPTED, Preempted

    joins = [w.removeprefix("--distributed=") for w in words if w.startswith("--distributed=")]
    distributed.start(*(joins or ["off"]))
    if "--interleave" in words:
        interleave()
    config = tiny_config(int(steps))
    for word in words:
        key, _, value = word.partition("=")
        if not key.startswith("--"):
            config.update_from_flattened_dict({key: json.loads(value)})
    try:
        train(config, workdir)
    except Preempted:
        return PREEMPTED
    except Exception as error:
        if joins:
            distributed.abort(error, 1)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
