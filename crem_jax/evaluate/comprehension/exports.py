"""Writes predictions in the format that VLMEvalKit scores: its table, without the pictures."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crem_jax.errors import CremError
from crem_jax.evaluate.comprehension.tables import Question
from crem_jax.files import write_bytes, write_lines, write_text

_NOT_IN_EXCEL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_CELL = 32_767  # characters that Excel keeps


def check_excel() -> None:
    """Raises CremError if openpyxl is not installed."""
    if importlib.util.find_spec("openpyxl") is None:
        raise CremError("--xlsx needs openpyxl: pip install 'crem_jax[xlsx]'")


def write_predictions(
    stem: Path, questions: Sequence[Question], answers: Mapping[str, str], excel: bool = False
) -> list[Path]:
    """Writes STEM.tsv and STEM.jsonl, with `excel` STEM.xlsx too, and returns their paths.

    Args:
      answers: index of the question -> answer. excel: needs openpyxl, see `check_excel`.
    """
    columns = list(questions[0].columns)
    rows = [{**q.columns, "prediction": answers[q.index]} for q in questions]
    names = [*columns, "prediction"]
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".tsv", ".jsonl", ".xlsx")]
    table = io.StringIO(newline="")
    # Everything is quoted, as in VLMEvalKit: a lone \r would end a row.
    writer = csv.DictWriter(
        table, names, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(files[0], table.getvalue())
    write_lines(files[1], rows)
    if not excel:
        return files[:2]
    write_bytes(files[2], _workbook(names, rows))
    return files


def _workbook(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet()

    def cell(value: str | int | None) -> WriteOnlyCell:
        made = WriteOnlyCell(sheet, value)
        if isinstance(value, str):
            made.data_type = "s"  # "=5" is an answer, no formula
        return made

    sheet.append([cell(name) for name in names])
    for row in rows:
        sheet.append([cell(_value(name, row[name])) for name in names])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _value(name: str, value: str) -> str | int | None:
    if name == "index" and value.isdecimal():
        return int(value)
    return _NOT_IN_EXCEL.sub("", value)[:_CELL] or None
