"""What a process that loads data for another owes it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import threading


@functools.cache
def end_with_parent() -> None:
    """Has this process end when the one that started it does, however that ends.

    A parent that is killed cannot end its workers: they would wait forever to be asked for more,
    and hold their memory. Does nothing in a process that no other has started.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may.

    A batch has all its pictures open between their headers and their pixels; the usual limit of
    1,024 is for programs that `select`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
