"""Console output: log lines, tables, and a live progress line on a terminal. All text goes through `Terminal`."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from orchestrator.printable import printable
from orchestrator.run.progress import Progress

PLAIN_INTERVAL_S = 10.0
"""Seconds between progress lines if the output is not a terminal."""

_STARTED_AT = time.monotonic()


class Terminal(RichConsole):
    """A console of Rich for which strings are data: it finds no markup in them, and shows control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is printed, in a table or by itself."""
        return super().render_str(printable(text), **options)


class Console:
    """Prints a run's log lines and progress to standard output."""

    def __init__(self) -> None:
        self.rich = Terminal()
        self._live: Live | None = None
        self._printed_at = 0.0
        self._rate: tuple[float, int] | None = None

    def line(self, text: str) -> None:
        """Prints a log line with the seconds since the start of the process."""
        self.rich.print(f"[{time.monotonic() - _STARTED_AT:6.1f} s] {text}", soft_wrap=True)

    def verbatim(self, text: str) -> None:
        """Writes text as it is, without a line break after it: Rich would make spaces of tabs."""
        self.rich.file.write(printable(text))
        self.rich.file.flush()

    def notice(self, text: str) -> None:
        """Prints a line that matters to the whole sweep, where the run is a trial; here a line like others."""
        self.line(text)

    def progress(self, progress: Progress, steps: int) -> None:
        """Updates the progress line; if the output is not a terminal, prints a log line every PLAIN_INTERVAL_S."""
        if not progress.row:
            return
        text = self._progress_text(progress, steps)
        if self.rich.is_terminal:
            if self._live is None:
                self._live = Live(console=self.rich, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(Text(text))
        elif time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            self._printed_at = time.monotonic()
            self.line(text)

    def close(self) -> None:
        """Removes the progress line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _progress_text(self, progress: Progress, steps: int) -> str:
        row = progress.row
        now = time.monotonic()
        if self._rate is None:
            self._rate = (now, row["step"])
        since, from_step = self._rate
        tokens_per_step = row["tokens"] / row["step"]
        loss = "data skipped" if row["loss"] is None else f"loss {row['loss']:.4f}"
        text = f"step {row['step']:,}/{steps:,}  {loss}  lr {row['lr']:.2e}  {row['world_size']} workers"
        if row["step"] > from_step:
            steps_per_s = (row["step"] - from_step) / (now - since)
            left_s = (steps - row["step"]) / steps_per_s
            text += f"  {steps_per_s * tokens_per_step:,.0f} tokens/s  {left_s // 60:.0f}:{left_s % 60:02.0f} left"
        return text if progress.phase == "training" else f"{text}  ({progress.phase})"
