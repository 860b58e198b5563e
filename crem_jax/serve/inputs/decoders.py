"""Decodes pictures of requests in processes that can be killed, so that one that hangs or crashes
them harms no other request.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from crem_jax.config import VisionConfig
from crem_jax.data.images.decode import PictureError
from crem_jax.data.images.processor import ImageProcessor, PatchedPicture
from crem_jax.processes import default_workers
from crem_jax.serve.admission import in_thread
from crem_jax.serve.errors import ApiError
from crem_jax.serve.inputs.pictures import CutPicture, decode_data_uri
from crem_jax.serve.inputs.worker_pool import CallLost, WorkerPool
from crem_jax.serve.limits import Limits
from crem_jax.serve.metrics import Metrics

_MOST = 4  # processes
_MEMORY, _PIXEL = 1 << 30, 48
"""Bytes by which a process may grow: a constant, plus bytes per pixel of the largest picture."""


class Decoders:
    """Decodes and resizes pictures and cuts them into patches, a few at a time."""

    def __init__(self, vision: VisionConfig, limits: Limits, metrics: Metrics):
        workers = min(_MOST, default_workers())
        work = CutPicture(ImageProcessor(vision), limits.pixels)
        memory = _MEMORY + _PIXEL * limits.pixels
        self._pool = WorkerPool(work, workers, limits.picture_seconds, memory)
        self._threads = ThreadPoolExecutor(workers, "crem-pictures")
        self._metrics = metrics

    @property
    def healthy(self) -> bool:
        """Whether a process is ready to decode, or will be soon."""
        return self._pool.check()

    def close(self) -> None:
        """Kills the processes, and abandons pictures that are being decoded."""
        self._pool.close()
        self._threads.shutdown()

    async def read(self, source: str | bytes, where: str) -> PatchedPicture:
        """Decodes a picture and cuts it into patches.

        Args:
          source: the encoded picture, or a data URI.
          where: the part of the request, for errors.

        Raises:
          ApiError: 400, it cannot be used. NoWorkerError: no process can be started.
        """
        return await in_thread(self._threads, self._read, source, where)

    def _read(self, source: str | bytes, where: str) -> PatchedPicture:
        data = decode_data_uri(source, where) if isinstance(source, str) else source
        try:
            return self._pool.call((data, where))
        except PictureError as error:
            raise ApiError(400, str(error), where, "invalid_image") from error
        except MemoryError as error:
            message = f"{where}: needs more memory to decode than a picture may take"
            raise ApiError(400, message, where, "invalid_image") from error
        except CallLost as error:
            self._metrics.pictures_lost.labels("timeout" if error.timeout else "crash").inc()
            message = f"{where}: cannot be decoded: {error}"
            raise ApiError(400, message, where, "invalid_image") from error
