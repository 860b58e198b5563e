"""Studies: the settings that are trained, and how each is evaluated."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from crem_jax.errors import CremError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Published = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train: options added to those of the config file, and changed keys.

    Attributes:
      option: "arm=crem,chorus=4". changes: ("loss.elastic=0.0", …).
    """

    option: str = ""
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The directory of its runs, shared by equal settings of different studies."""
        options = [part.removeprefix("arm=") for part in self.option.split(",") if part]
        return re.sub(r"[^\w.=+-]", "-", "+".join([*options, *self.changes])) or "default"

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(f"--config.{change}" for change in self.changes)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: a setting, evaluated in one way.

    Attributes:
      label: its name in the table; `x` in the figure, on the curve called `series`.
      k: number of leading chorus tokens that are visible; None: all. sinks: context slots kept
        beside them.
      published: the paper's figures of Qwen2-VL-2B, in percent: MMEB, native, compressed, cache.
    """

    label: str
    setting: Setting = Setting()
    k: int | None = None
    sinks: int = 0
    x: str = ""
    series: str = ""
    published: Published = dataclasses.field(default_factory=dict)

    @property
    def score_key(self) -> str:
        """The key of its scores in the summary of a run."""
        return f"k={self.k or 'all'},sinks={self.sinks}"


JUDGED = ("rows", "within series", "series")
"""What the verdict below a table compares: all rows; the rows of each series among themselves; or
the series, by their means over the places `x` that all of them have."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A table.

    Attributes:
      name: on the command line. title: what it asks. signs: whether signs are read aloud too.
      judged: one of JUDGED. assumes: keys that settings leave alone, as labels have them.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    signs: bool = False
    judged: str = "rows"
    assumes: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    def check(self, config: ConfigDict) -> None:
        """Raises CremError if a key has not the value that the labels take for its default."""
        for key, value in self.assumes.items():
            found = functools.reduce(operator.getitem, key.split("."), config)
            if found != value:
                raise CremError(
                    f"study {self.name} takes {value!r} for the default of {key}, and the config "
                    f"has {found!r}; expected a config in which it is {value!r}"
                )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What is trained, each once."""
        return tuple(dict.fromkeys(row.setting for row in self.rows))

    def rows_of(self, setting: Setting) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.setting == setting)
