"""The progress bar of a run."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

_SHOWN = {
    "loss": "loss",
    "retrieval": "L_r",
    "generation_native": "L_g",
    "generation_compressed": "L_g|z=1",
    "retrieval_p1": "P@1",
    "samples_per_second": "samples/s",
    "utilisation": "utilisation",
}


class Progress:
    """Steps, loss parts, in-batch P@1, samples/s and time left; plain lines without a terminal.

    Args:
      steps: of the whole run. first: steps already done.
      quiet: shows nothing, as every process but one should.
    """

    def __init__(self, steps: int, first: int, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = RichProgress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, completed=first, text="")
        self.steps = steps

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows the newest values of a training step or an evaluation (keys `eval/…`)."""
        scores = {k.removeprefix("eval/"): v for k, v in values.items() if k.startswith("eval/")}
        named = scores or {_SHOWN[key]: values[key] for key in _SHOWN if key in values}
        text = "  ".join(f"{name} {value:.3g}" for name, value in named.items())
        self.bar.update(self.task, completed=step, text="" if scores else text)
        if scores or not self.console.is_terminal:
            self.console.print(f"step {step}/{self.steps}  {text}", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.bar.update(self.task, text=text)
