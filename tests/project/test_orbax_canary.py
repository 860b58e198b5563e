"""A private part of orbax that this library reaches into: what to look at when it moves.

setup.py allows the minor version that this test has seen.
"""

import inspect

from orbax.checkpoint import type_handlers


def test_orbax_writes_each_array_through_open_and_write():
    """If this fails, see `checkpoints/lazy_orbax.py`: its handler overrides `_open_and_write` of
    orbax's handler of numpy arrays, so that weights are read and written piece by piece. Where
    orbax no longer calls it, whole arrays are read into memory, or saving fails.
    """
    handler = type_handlers.NumpyHandler
    parameters = list(inspect.signature(handler._open_and_write).parameters)
    assert parameters == ["self", "value", "tspec", "ts_context"]
    assert inspect.iscoroutinefunction(handler._open_and_write)
    assert "self._open_and_write(" in inspect.getsource(handler._background_serialize)
