"""How this process gets its memory from the system."""

from __future__ import annotations

import os
import sys

_SETTING = "GLIBC_TUNABLES"


def use_huge_pages() -> None:
    """Starts this process anew with huge pages for large allocations (Linux with glibc).

    A training step on a CPU takes and returns hundreds of megabytes of scratch memory; faulting it
    in by pages of 4 KiB takes 30 % of the step; converting weights faults in as much. glibc reads
    the setting at the start only. Does nothing where the user has set GLIBC_TUNABLES.
    """
    if sys.platform == "linux" and _SETTING not in os.environ:
        os.environ[_SETTING] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
