"""Where a run lives: a directory, or a bucket (gs://BUCKET/RUN) with its small files mirrored here.

Checkpoints go to the bucket directly, from every process. What people read (metrics, recipe,
pictures, skipped records) is written here and copied there, because buckets cannot append.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from etils import epath

from crem_jax import distributed
from crem_jax.errors import CremError
from crem_jax.files import WriteFailed

_MIRRORS = Path("~/.cache/crem_jax/runs")
_PROBE = ".writable"
_PUSH_EVERY = 60.0  # seconds
_CHECKPOINTS = ("checkpoints", "checkpoints-damaged")


class RunDirectory:
    """One run's place.

    Args:
      workdir: a directory or gs:// URL. mirror: local directory for the small files of a bucket.

    Attributes:
      local: directory of the small files; of a bucket each process has its own, because several
        may share a machine. checkpoints: where checkpoints go.
    """

    def __init__(self, workdir: str | Path, mirror: Path | None = None):
        self.name = str(workdir)
        self.remote = None
        if "://" in self.name or mirror:
            try:
                self.remote = epath.Path(self.name)
            except KeyError as error:  # epath knows no such scheme
                raise CremError(
                    f"--workdir {self.name!r} is neither a directory nor a bucket (gs://BUCKET/RUN)"
                ) from error
        slug = self.name.partition("://")[2].strip("/").replace("/", "--")
        slug += "" if distributed.is_main() else f"--process-{distributed.share()[0]}"
        self.local = (mirror or _MIRRORS.expanduser() / slug) if self.remote else Path(workdir)
        place = self.remote or epath.Path(self.local.absolute())
        self.checkpoints = place / "checkpoints"
        self._pushed: dict[Path, float] = {}
        self._last = time.monotonic()

    @classmethod
    def open(cls, workdir: str | Path) -> RunDirectory:
        """The run's place, with the small files of a bucket brought here, on every process."""
        run = cls(workdir)
        run.pull()
        return run

    @property
    def is_local(self) -> bool:
        return self.remote is None

    def pull(self) -> None:
        """Brings the small files of a bucket here, in place of any that are."""
        if self.remote is None:
            return
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True)
        try:
            if self.remote.exists():
                self._copy_down(self.remote, self.local)
            self.remote.mkdir(parents=True, exist_ok=True)
            (self.remote / _PROBE).write_text("crem_jax can write here\n")
        except Exception as error:  # the bucket's client has many classes of errors
            raise OSError(f"--workdir {self.name} cannot be used: {error}") from error

    def push(self, now: bool = True, must: bool = True) -> None:
        """Copies small files that have changed here to the bucket.

        Each process does so with its own: most are written by process 0 alone.

        Args:
          now: or only if the last time was a minute ago.
          must: or else an error is told, and the next push tries again.

        Raises:
          WriteFailed: it must, and cannot.
        """
        if self.remote is None or (not now and time.monotonic() - self._last < _PUSH_EVERY):
            return
        try:
            for path in sorted(self.local.rglob("*")):
                if path.is_file() and not path.match(".*.partial"):  # being written
                    self._copy_up(path, self.remote)
        except Exception as error:  # the bucket's client has many classes of errors
            problem = f"{self.name} cannot be written: {error}"
            if must:
                raise WriteFailed(problem) from error
            print(f"{problem}; this is tried again", file=sys.stderr)
        self._last = time.monotonic()

    def _copy_up(self, path: Path, root: epath.Path) -> None:
        try:
            changed = path.stat().st_mtime
            if self._pushed.get(path) == changed:
                return
            content = path.read_bytes()
        except FileNotFoundError:  # put in the place of another, or removed
            return
        there = root / path.relative_to(self.local).as_posix()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)
        self._pushed[path] = changed

    def _copy_down(self, there: epath.Path, here: Path) -> None:
        for child in there.iterdir():
            if child.name in (*_CHECKPOINTS, _PROBE):
                continue
            if child.is_dir():
                (here / child.name).mkdir()
                self._copy_down(child, here / child.name)
            else:
                file = here / child.name
                file.write_bytes(child.read_bytes())
                self._pushed[file] = file.stat().st_mtime
