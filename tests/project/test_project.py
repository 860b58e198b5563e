"""The project installs whole and its scripts are sound."""

import runpy
import subprocess
from pathlib import Path

import pytest
import setuptools

import crem_jax.library

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci/run"]


def test_every_folder_of_modules_is_a_package_and_so_gets_installed():
    folders = {module.parent for module in (ROOT / "crem_jax").rglob("*.py")}
    folders.discard(ROOT / "crem_jax" / "assets")  # package data: nothing imports it from here
    missing = [f.relative_to(ROOT) for f in folders if not (f / "__init__.py").exists()]
    assert not missing, f"without __init__.py setuptools leaves these out: {missing}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launch_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_quickstart_refuses_unknown_arguments():
    command = ["bash", ROOT / "launch/quickstart.sh", "--fast"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "usage: bash launch/quickstart.sh [--smoke]\n"


def test_the_package_says_what_it_is_and_ships_its_types(monkeypatch):
    said = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: said.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    assert said["long_description"] == (ROOT / "README.md").read_text()
    assert said["long_description_content_type"] == "text/markdown"
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert pythons <= set(said["classifiers"])
    assert said["python_requires"] == ">=3.11"
    assert "py.typed" in said["package_data"]["crem_jax"]
    assert (ROOT / "crem_jax/py.typed").exists()


def test_the_face_lists_what_it_gives():
    for module in (crem_jax, crem_jax.library):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
