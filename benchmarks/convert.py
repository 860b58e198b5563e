"""Hugging Face → model directory → Hugging Face at the true shapes, beside copies of the files.

    python benchmarks/convert.py 2b --json            # needs 18 GB of disk under --root
    python benchmarks/convert.py 7b --root /big/disk  # 50 GB

A checkpoint of random weights is made (`make_checkpoint.py`), imported and exported by `crem` in
processes of their own, whose peak resident memory is read from the system. Before and after each of
the two the same files are copied and synced; a conversion syncs what it writes too. Then an import
is killed with SIGKILL half way, run again, and its result and the export are compared with the
source, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from absl import logging

from crem_jax import trees
from crem_jax.checkpoints.open import open_parts
from crem_jax.config import DTYPES
from crem_jax.convert.huggingface import check_same_bits, open_hf

MAKE = Path(__file__).with_name("make_checkpoint.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=("2b", "7b"))
    parser.add_argument(
        "--root", help="where the files go (default: the system's temporary folder)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # orbax says what it does
    with tempfile.TemporaryDirectory(dir=args.root, prefix="crem-convert-") as folder:
        result = measure(args.size, args.dtype, Path(folder))
    for name, value in result.items():
        print(f"{name:36}{value}")
    if args.json:
        print(json.dumps(result))


def measure(size: str, dtype: str, root: Path) -> dict:
    """Every figure of one size; the files are under `root`."""
    source, model, out = root / "source", root / "model", root / "out"
    run([sys.executable, str(MAKE), size, str(source), "--dtype", dtype])
    total = sum(leaf.nbytes for leaf in trees.flatten(open_hf(source)[1]).values())
    result = {"size": size, "dtype": dtype, "gigabytes": round(total / 1e9, 2)}
    steps = {
        "import": [str(source), str(model), "--chorus", "0"],
        "export": [str(model), str(out)],
    }
    for verb, arguments in steps.items():
        before = copy(source, root / "copy")
        said, peak = run([sys.executable, "-m", "crem_jax", verb, *arguments, "--json"])
        copied = (before + copy(source, root / "copy")) / 2
        seconds = json.loads(said)["seconds"]
        result |= {
            f"{verb}_gb_per_second": round(total / seconds / 1e9, 2),
            f"{verb}_of_copy": round(copied / seconds, 2),
            f"copy_around_{verb}_gb_per_second": round(total / copied / 1e9, 2),
            f"{verb}_peak_rss_gb": round(peak / 1e9, 2),
        }
    compare(source, out)
    shutil.rmtree(out)
    shutil.rmtree(model)
    result["killed_at_gb"] = round(kill_half_way(source, model, total) / 1e9, 2)
    assert not model.exists()
    run([sys.executable, "-m", "crem_jax", "import", str(source), str(model), "--chorus", "0"])
    compare(source, model)
    return result | {"bit_equal": True}


def run(command: list[str]) -> tuple[str, int]:
    """What a command prints, and its peak resident memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return said, usage.ru_maxrss * 1024


def copy(source: Path, target: Path) -> float:
    """Seconds to copy the weight files and have them on the disk."""
    os.sync()
    target.mkdir()
    since = time.perf_counter()
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, target / file.name)
        with open(target / file.name, "rb") as written:
            os.fsync(written.fileno())
    seconds = time.perf_counter() - since
    shutil.rmtree(target)
    return seconds


def kill_half_way(source: Path, model: Path, total: int) -> int:
    """Starts an import, kills it when half the bytes are written; how many were."""
    command = [sys.executable, "-m", "crem_jax", "import", str(source), str(model)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    partial = model.with_name(f".{model.name}.partial")
    written = 0
    while written < total / 2:
        if process.poll() is not None:
            raise SystemExit("the import ended before it could be killed")
        time.sleep(0.05)
        written = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    process.send_signal(signal.SIGKILL)
    process.wait()
    return written


def compare(source: Path, other: Path) -> None:
    """Raises WeightsError unless two model directories hold the same bits."""
    one, two = (trees.flatten(open_parts(directory)[1]) for directory in (source, other))
    check_same_bits(two, one, source=str(other))


if __name__ == "__main__":
    main()
