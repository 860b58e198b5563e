"""The root of all errors that are the user's fault (docs/errors.md)."""

from __future__ import annotations


class CremError(ValueError):
    """Something that was asked or given cannot be used; the message names the value, what was
    expected, and the key or file.

    The command line prints it as one line and exits with 2, the server answers with a 4xx, and the
    data pipeline counts a bad record. Every other exception but OSError is a bug and surfaces.
    """


class Unavailable(CremError):
    """What was asked for cannot be had now, whatever is asked of it: the server answers with 503,
    as for an OSError, and keeps the message to its log.
    """
