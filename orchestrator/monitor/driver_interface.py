"""The monitor's interface for the driver. Short, and a file of its own so that each caller has one to read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.monitor.kept_state import not_kept
from orchestrator.monitor.state import MonitorInterface
from orchestrator.run.progress import Progress


class DriverInterface(MonitorInterface):
    """Methods that the driver calls."""

    @not_kept
    def progress(self, logged: int = 0) -> Progress:
        """The run's state, as reported so far.

        Args:
            logged: number of lines for the console that the driver has; only those after them are sent.
        """
        progress = self._state.progress
        return replace(progress, log_lines=progress.lines_after(logged))

    def request_stop(self) -> None:
        """Requests that the loop saves and stops after the current step."""
        self._state.request(stop=True)

    @not_kept
    def agents(self) -> dict[str, Any]:
        """Handles of all snapshot agents by node, lost nodes included. Snapshot agents call it, too."""
        return dict(self._state.agents)
