"""What a run costs: speed, waiting and memory, measured on the host."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from crem_jax.chips import CHIPS
from crem_jax.types import PAD, Batch

MEASURES = (
    "samples_per_second",
    "tokens_per_second",
    "data_wait",
    "utilisation",
    "device_memory_gb",
    "memory_gb",
)
"""What `Meter.read` may give; unlike all other metrics these differ between equal runs."""


class Meter:
    """Measures between two readings.

    Args:
      samples: records of a global step.
      flops: model FLOPs of a global step. peak: FLOP/s of all devices together. Without both
        there is no utilisation.
    """

    def __init__(self, samples: int, flops: float | None = None, peak: float | None = None):
        self.samples, self.flops, self.peak = samples, flops, peak
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured, as after an evaluation."""
        self._since = time.perf_counter()
        self._steps = self._tokens = 0
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since

    def count(self, batch: Batch) -> None:
        """One step's share of this process, on the host."""
        self._steps += 1
        for context in batch.contexts.values():
            self._tokens += int(np.count_nonzero(np.asarray(context.region) != PAD))
        for target in batch.targets.values():
            self._tokens += int(np.count_nonzero(target.valid))

    def read(self) -> dict[str, float]:
        """The measures since the last reading, and a new start.

        samples_per_second, tokens_per_second (context and target, without padding) count all
        processes; data_wait is the share of time spent waiting for the data stream; utilisation
        the model's FLOPs against the devices' peak; device_memory_gb the most a device of this
        process has held, where devices say; memory_gb the most this process has.
        """
        took = time.perf_counter() - self._since
        values = {
            "samples_per_second": self.samples * self._steps / took,
            "tokens_per_second": self._tokens * jax.process_count() / took,
            "data_wait": self._waited / took,
        }
        if self.flops and self.peak:
            values["utilisation"] = self.flops * self._steps / took / self.peak
        held = [device.memory_stats() or {} for device in jax.local_devices()]
        if any("peak_bytes_in_use" in stats for stats in held):
            values["device_memory_gb"] = max(s.get("peak_bytes_in_use", 0) for s in held) / 2**30
        values["memory_gb"] = peak_rss_mb() / 2**10
        self.restart()
        return values


def device_peak() -> float | None:
    """Operations a second that the device at hand can do at most in bfloat16; None if unknown.

    Sources: `plan.chips` for TPUs, the makers' data sheets (dense, without sparsity) for GPUs.
    """
    kind = jax.local_devices()[0].device_kind
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, kind)), None)


_PEAKS = (
    (r"TPU v4", CHIPS["v4"].flops),
    (r"TPU v5 ?(lite|e)", CHIPS["v5e"].flops),
    (r"TPU v5", CHIPS["v5p"].flops),
    (r"TPU v6 ?(lite|e)", CHIPS["v6e"].flops),
    (r"TPU ?7x", CHIPS["tpu7x"].flops / 2),  # a chip is two devices
    (r"A100", 312e12),
    (r"H100 PCIe", 756e12),
    (r"H100|H200|GH200", 989e12),
    (r"B200", 2250e12),
    (r"L40S", 362e12),
    (r"L4", 121e12),
)


class Trace:
    """An xprof trace of a few steps, read by TensorBoard's profile plugin or Perfetto.

    Args:
      directory: where it goes. first: the first step traced. steps: how many; 0 traces nothing.
    """

    def __init__(self, directory: Path, first: int, steps: int):
        self.directory, self.first, self.end = directory, first, first + steps
        self._on = False

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_) -> None:
        if self._on:
            jax.profiler.stop_trace()

    def at(self, step: int) -> None:
        """Call it before every step."""
        if self.first <= step < self.end and not self._on:
            jax.profiler.start_trace(str(self.directory))
            self._on = True
        elif step >= self.end and self._on:
            jax.profiler.stop_trace()
            self._on = False


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here
