"""Memory allocation settings of this process."""

from __future__ import annotations

import os
import sys

_SETTING = "GLIBC_TUNABLES"


def use_huge_pages() -> None:
    """Restarts this process with huge pages for large allocations (Linux with glibc).

    A training step on a CPU allocates and frees hundreds of megabytes of scratch memory; page
    faults of 4 KiB take 30 % of the step, and as much when weights are converted. glibc reads the
    setting at start-up only, hence the restart. Does nothing if the user has set GLIBC_TUNABLES.
    """
    if sys.platform == "linux" and _SETTING not in os.environ:
        os.environ[_SETTING] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
