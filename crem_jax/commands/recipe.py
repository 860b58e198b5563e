"""Configs on the command line: a config file, its option, and overrides of its keys."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from crem_jax.config import ConfigError

_OVERRIDE = re.compile(r"--?config\.([^=]+)")


def read_recipe(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file, locked.

    Args:
      path: "FILE.py" or "FILE.py:option", whose `get_config(option)` gives the config.
      overrides: flags such as "--config.optim.lr=1e-4".

    Raises:
      FileNotFoundError: no such file.
      ConfigError: not a config file, an unknown key (near ones are named), or a value of the wrong
        type. Errors of the file's own `get_config` are raised as they are.
    """
    name, _, option = path.partition(":")
    config = _get_config(name)(*([option] if option else []))
    config.lock()
    keys = list(_keys(config))
    for flag in overrides:
        match = _OVERRIDE.match(flag)
        if match and re.sub(r"\[\d+\]", "", match[1]) not in keys:
            raise ConfigError(_unknown(match[1], keys, name))
    values = flags.FlagValues()
    argv = ["crem", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)[1:]
    except (flags.Error, TypeError) as error:
        raise ConfigError(str(error)) from error
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; expected --config.KEY=VALUE")
    return config


def _get_config(name: str):
    file = Path(name)
    if not file.is_file():
        raise FileNotFoundError(f"config file {name} does not exist")
    spec = importlib.util.spec_from_file_location("crem_config", file)
    if spec is None:
        raise ConfigError(f"config file {name} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    with _importing_from(file.parent):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {name} has no get_config()")
    return module.get_config


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """A config may import its neighbours; their names are forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == folder.resolve():
                del sys.modules[name]


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def _unknown(key: str, keys: Sequence[str], file: str) -> str:
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, keys, 3, 0.7)
    near += [k for k in keys if k.rpartition(".")[2] == last and k not in near]
    section = key.rpartition(".")[0] if key.rpartition(".")[0] in keys else ""
    inside = [k for k in keys if k.rpartition(".")[0] == section]
    hint = f"near matches: {', '.join(near[:5])}" if near else f"known: {', '.join(inside)}"
    return f"unknown config key {key!r} in {file}; {hint}"
