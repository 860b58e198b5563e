"""The documentation's site builds without a warning, broken links and anchors included."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    start = (tmp_path / "index.html").read_text()
    assert 'href="library.html"' in start and 'href="docs/' not in start
    reference = (tmp_path / "reference.html").read_text()
    for name in ("load", "Model.encode", "CremError", "library.Library.find", "types.Memory"):
        assert f'id="crem_jax.{name}"' in reference, name
