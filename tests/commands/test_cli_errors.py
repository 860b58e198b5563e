"""Which errors are one line, and which are bugs and keep their traceback; and the exit codes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from crem_jax import distributed
from crem_jax.cli import main
from crem_jax.config import ConfigError
from crem_jax.data.records import RecordError
from crem_jax.errors import CremError
from crem_jax.files import WriteFailed
from crem_jax.library.entry import StoreError
from crem_jax.train.run.faults import Diverged

TELL = ["tell", "model", "picture.png"]


def raising(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


def wrong_shapes(*_, **__):
    return np.zeros((2, 3)) @ np.zeros((2, 3))


@pytest.mark.parametrize(
    "error, code, line",
    [
        (CremError("k = 9 is not in 1..4"), 2, "k = 9 is not in 1..4"),
        (ConfigError("two\nlines"), 2, "two lines"),
        (RecordError("row 3"), 2, "row 3"),
        (StoreError("lib cannot be used"), 2, "lib cannot be used"),
        (Diverged("not finite"), 2, "not finite"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 2, "a.png: No such file"),
        (PermissionError("no way"), 2, "no way"),
        (WriteFailed("the disk is full"), 1, "the disk is full"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, monkeypatch, error, code, line):
    monkeypatch.setattr("crem_jax.inference.model.load", raising(error))
    assert main(TELL) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"crem tell: {line}")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes (2,3) and (2,3) not aligned"),
        TypeError("unsupported operand"),
        KeyError("label"),
        RuntimeError("RESOURCE_EXHAUSTED"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        NotImplementedError("later"),
    ],
)
def test_every_other_error_is_a_bug_and_raised(capsys, monkeypatch, error):
    monkeypatch.setattr("crem_jax.inference.model.load", raising(error))
    with pytest.raises(type(error)) as met:
        main(TELL)
    assert met.value is error and capsys.readouterr().err == ""


def test_a_bug_in_load_ends_the_program_with_a_traceback_and_code_1():
    code = (
        "import sys, numpy as np, crem_jax.inference.model as model\n"
        "model.load = lambda *_, **__: np.zeros((2, 3)) @ np.zeros((2, 3))\n"
        "from crem_jax.cli import main; sys.argv = ['crem', 'tell', 'model', 'picture.png']\n"
        "sys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ValueError: matmul: Input operand 1 has a mismatch" in ended.stderr


@pytest.mark.parametrize(
    "error, code, traceback",
    [
        (CremError("of the user"), 2, False),
        (OSError("of the disk"), 2, False),
        (WriteFailed("of the disk"), 1, False),
        (ValueError("of ours"), 1, True),
        (KeyboardInterrupt(), 1, True),
    ],
)
def test_one_process_of_several_ends_with_the_same_codes(
    capsys, monkeypatch, error, code, traceback
):
    class Ended(BaseException):
        pass

    def end(code: int):
        raise Ended(code)

    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.os, "_exit", end)
    with pytest.raises(Ended) as ended, distributed.job("off"):
        raise error
    assert ended.value.args == (code,)
    err = capsys.readouterr().err
    assert err.startswith("crem: process 0 of 2") and ("Traceback" in err) == traceback


def test_a_name_that_is_no_text_can_be_printed(capfd):
    code = (
        "import crem_jax.inference.model as model\n"
        "model.load = lambda *_, **__: (print('caf\\udce9.png'), exit(0))\n"
        "from crem_jax.cli import main; main(['tell', 'model', 'picture.png'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii"}
    )
    assert ended.stdout == b"caf\\udce9.png\n", ended.stderr
