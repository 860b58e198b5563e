"""Runs `crem` in this process."""

from __future__ import annotations

import json
from types import SimpleNamespace

from crem_jax.cli import main


def crem(capsys, *argv) -> SimpleNamespace:
    """Runs `crem`; the JSON it printed is `.json`."""
    capsys.readouterr()
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    parsed = json.loads(out) if "--json" in argv and code == 0 else None
    return SimpleNamespace(code=code, out=out, err=err, json=parsed)
