"""Hugging Face → model directory → Hugging Face, piece by piece, all at once or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crem_jax import lazy_array, trees
from crem_jax.checkpoints.open import load_parts, open_parts
from crem_jax.cli import main
from crem_jax.convert import huggingface
from crem_jax.convert.safetensors_io import SINGLE
from crem_jax.convert.table import WeightsError
from tests.support import hf_models as hf


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(lazy_array, "PIECE_BYTES", 4000)
    monkeypatch.setattr(lazy_array, "CHUNK_BYTES", 1500)


def crem(*argv) -> None:
    assert main([str(arg) for arg in argv]) == 0


def bits(directory: Path) -> dict[str, tuple]:
    tensors: dict[str, np.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_come_back_bit_equal_in_the_type_they_had(
    tied, dtype, seed, tmp_path, small_pieces
):
    oracle = hf.oracle(tmp_path, seed, tied)
    source = oracle.directory
    if dtype == "bfloat16":
        values = load_file(source / SINGLE)
        save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in values.items()}, source / SINGLE)
    crem("import", source, tmp_path / "model", "--chorus", 0, "--verify")
    crem("export", tmp_path / "model", tmp_path / "out", "--verify", "--shard_gb", 1e-5)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert bits(tmp_path / "out") == bits(source)
    _, params, _ = open_parts(tmp_path / "model")
    assert {str(leaf.dtype) for leaf in trees.flatten(params).values()} == {dtype}
    _, params, _ = load_parts(tmp_path / "model")
    assert {str(leaf.dtype) for leaf in trees.flatten(params).values()} == {"float32"}


def test_float16_is_read_as_float32(seed, tmp_path):
    source = hf.oracle(tmp_path, seed, True).directory
    values = {k: v.astype(np.float16) for k, v in load_file(source / SINGLE).items()}
    save_file(values, source / SINGLE)
    crem("import", source, tmp_path / "model", "--chorus", 0)
    crem("export", tmp_path / "model", tmp_path / "out")
    wide = {k: v.astype(np.float32) for k, v in values.items()}
    assert bits(tmp_path / "out") == {k: (v.dtype, v.shape, v.tobytes()) for k, v in wide.items()}


def test_another_type_is_refused_by_name(seed, tmp_path, capsys):
    source = Path(shutil.copytree(hf.oracle(tmp_path, seed, True).directory, tmp_path / "copy"))
    values = load_file(source / SINGLE)
    values["model.norm.weight"] = values["model.norm.weight"].astype(np.int8)
    save_file(values, source / SINGLE)
    assert main(["import", str(source), str(tmp_path / "model")]) == 2
    assert "model.norm.weight is int8; expected float32, bfloat16 or" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_verifying_names_what_was_written_wrongly(seed, tmp_path, monkeypatch):
    config, params, tokenizer = huggingface.open_hf(hf.oracle(tmp_path, seed, True).directory)
    real = huggingface.write_weights

    def damaging(directory, *args, **kwargs):
        real(directory, *args, **kwargs)
        with open(directory / SINGLE, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")

    monkeypatch.setattr(huggingface, "write_weights", damaging)
    with pytest.raises(WeightsError, match=r"out: read back, visual\.merger\.mlp\.2\.bias differ"):
        huggingface.export_hf(config, params, tokenizer, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


KILLED = """
import sys, time
from crem_jax.checkpoints import model_directory
from crem_jax.convert import huggingface
written = [0]
def count(size):
    written[0] += size
    if written[0] > int(sys.argv[3]):
        print("ready", flush=True)
        time.sleep(60)
config, params, tokenizer = huggingface.open_hf(sys.argv[1])
model_directory.save_model(sys.argv[2], config, params, tokenizer, on_bytes=count)
"""


def test_a_killed_import_leaves_nothing_and_can_be_run_again(seed, tmp_path):
    source = hf.oracle(tmp_path, seed, True).directory
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "model"), "50000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    crem("import", source, tmp_path / "model", "--chorus", 0, "--verify")
    crem("export", tmp_path / "model", tmp_path / "out")
    assert bits(tmp_path / "out") == bits(source)
    assert not list(tmp_path.glob(".*"))


def test_a_plain_model_gets_its_chorus_and_tells_at_once(seed, tmp_path, capsys):
    from PIL import Image

    source = hf.oracle(tmp_path, seed, False).directory
    crem("import", source, tmp_path / "model", "--chorus", 4, "--verify")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    crem("tell", tmp_path / "model", tmp_path / "red.png", "--max_new_tokens", 3)
    crem("export", tmp_path / "model", tmp_path / "out")
    before, after = bits(source), bits(tmp_path / "out")
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    same = [name for name in before if before[name] == after[name]]
    assert sorted(set(before) - set(same)) == [head, table]
    assert before[table][1] == after[table][1]
