"""What a person at a terminal sees while a command works; never used in a pipe.

Everything is drawn on stderr and gone before anything is printed, so that what remains on the screen is the command's own output. The
streams are left alone: rich would send what is printed meanwhile, the document above all, to the stream it draws on.
"""

from __future__ import annotations

import atexit
from typing import Any

import rich.live
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

from rlm_sandbox.cli import output


class Live:
    """Shows the newest progress document as one line."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots", style="status.spinner")
        self._live = rich.live.Live(
            self._spinner,
            console=Console(stderr=True),
            refresh_per_second=12.5,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        output.displayed(self._live.stop)
        atexit.register(self._live.stop)

    def __call__(self, document: dict[str, Any]) -> None:
        """Show a progress document."""
        self._spinner.update(text=Text(line(document)))
        self._live.start()


class Bar:
    """A progress bar of sub-calls: done of planned, tokens, cost, time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[spent]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        output.displayed(self._progress.stop)
        self._task = self._progress.add_task("starting", total=None, spent="")
        self._progress.start()
        atexit.register(self._progress.stop)

    def __call__(self, document: dict[str, Any]) -> None:
        """Show a progress document."""
        if document.get("done"):
            self._progress.stop()
            return
        self._progress.start()
        if "message" in document:
            self._progress.update(self._task, description=str(document["message"]))
        else:
            self._progress.update(
                self._task,
                description=f"cell {document['cell']}",
                completed=document["calls_done"],
                total=max(document["calls_planned"], document["calls_done"]),
                spent=_spent(document),
            )


def line(document: dict[str, Any]) -> str:
    """Return one progress document as the line a person sees."""
    if "message" in document:
        return str(document["message"])
    planned = max(document["calls_planned"], document["calls_done"])
    text = f"cell {document['cell']}: sub-calls {document['calls_done']}/{planned}"
    seconds = document["elapsed_ms"] / 1000
    if document["calls_done"] and planned > document["calls_done"]:
        left = seconds * (planned - document["calls_done"]) / document["calls_done"]
        text += f", about {left:.0f} s left"
    return f"{text}, {_spent(document)}, {seconds:.0f} of {document['timeout_s']:.0f} s"


def _spent(document: dict[str, Any]) -> str:
    failed = f", {document['calls_failed']} failed" if document["calls_failed"] else ""
    return f"{document['tokens']} tokens, ${document['cost_usd']:.4f}{failed}"
