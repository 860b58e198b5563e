"""Configs on the command line: a recipe by its name or file, its option, and overrides of keys."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from crem_jax import configs
from crem_jax.configs.fields import ConfigError
from crem_jax.configs.flags import apply_flags


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a recipe, locked, with every key of the schema.

    Args:
      recipe: "NAME" of a module of `crem_jax.configs` or "FILE.py", and perhaps ":option" behind
        it: what `get_config(option)` gives.
      overrides: flags such as "--config.optim.lr=1e-4".

    Raises:
      FileNotFoundError: no such file or name.
      ConfigError: not a config file, an unknown key (near ones are named), or a value that it
        cannot have. Errors of the recipe's own `get_config` are raised as they are.
    """
    name, _, option = recipe.partition(":")
    config = _get_config(name)(*([option] if option else []))
    config = apply_flags(config, overrides, name)
    config.lock()
    return config


def packaged() -> tuple[str, ...]:
    """Names of the recipes that ship with the package."""
    modules = (each.name for each in pkgutil.iter_modules(configs.__path__) if not each.ispkg)
    return tuple(name for name in modules if name not in configs.NO_RECIPES)


def _get_config(name: str) -> Callable[..., ConfigDict]:
    if name in packaged():
        return importlib.import_module(f"{configs.__name__}.{name}").get_config
    file = Path(name)
    if not file.is_file():
        near = difflib.get_close_matches(name, packaged(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FileNotFoundError(
            f"config file {name} does not exist, and none of that name ships with the package: "
            f"{', '.join(packaged())}{hint}"
        )
    spec = importlib.util.spec_from_file_location("crem_config", file)
    if spec is None or spec.loader is None:
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
