"""Documents of tables and figures, rendered as a self-contained HTML file or as Markdown."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      rows: each has as many cells as there are columns; all but the first are right-aligned.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with a caption.

    Attributes:
      path: a PNG file.
    """

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a document.

    Attributes:
      text: paragraphs, followed by the tables, the figures and a block of code.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: str = ""


def html(title: str, sections: Sequence[Section]) -> str:
    """Renders one HTML page with embedded pictures."""
    source = resources.files("crem_jax").joinpath("assets/report.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(title=title, sections=sections)


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Renders Markdown whose pictures are linked relative to `folder`."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for table in section.tables:
            parts += [table.caption] if table.caption else []
            parts.append(_table(table))
        parts += [f"![{f.caption}]({os.path.relpath(f.path, folder)})" for f in section.figures]
        parts += [f"```\n{section.code}\n```"] if section.code else []
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    marks = ["---"] + ["---:"] * (len(table.columns) - 1)
    rows = [table.columns, marks, *table.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
