"""The monitor: one actor per attempt, through which driver, controller and training loop learn of each other.

It outlives worker groups, and its state outlives its process, see `kept_state`. Its methods are grouped by caller, each
group in a file of its own over one shared state:

    loop_interface.py          training workers and snapshot agents: reports in, requests out
    controller_interface.py    Ray Train's controller: restarts, and the number of workers
    driver_interface.py        the driver: progress, and the request to stop
    state.py                   the shared state
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.monitor.controller_interface import ControllerInterface
from orchestrator.monitor.driver_interface import DriverInterface
from orchestrator.monitor.evaluations import StartEvaluation
from orchestrator.monitor.kept_state import KeptState, count_start, keeping_state, not_kept
from orchestrator.monitor.loop_interface import LoopInterface
from orchestrator.monitor.state import EndAgent, MonitorState, StartAgent
from orchestrator.policy.scaling import ScalingPolicy


@keeping_state
class Monitor(LoopInterface, ControllerInterface, DriverInterface):
    """Body of the actor. No method waits.

    Args:
        scaling: decides on the number of workers.
        steps: step after which the run ends, or is paused.
        start_agent: starts the snapshot agent of a node.
        start_evaluation: starts a background evaluation; None: the workers always evaluate themselves.
        now: monotonic clock, seconds, which goes on when the process is started again.
        folder: where the state is kept for the case that the process dies; None: it is not.
        end_agent: ends the snapshot agent of a node; None: it ends with its last handle.
    """

    def __init__(
        self,
        scaling: ScalingPolicy,
        steps: int,
        start_agent: StartAgent,
        start_evaluation: StartEvaluation | None = None,
        now: Callable[[], float] = time.monotonic,
        folder: Path | None = None,
        end_agent: EndAgent | None = None,
    ) -> None:
        state = MonitorState(scaling, steps, start_agent, start_evaluation, now, end_agent)
        super().__init__(state)
        self._kept: KeptState | None = None
        if folder is not None:
            count_start(folder / "monitor.starts")
            self._kept = KeptState(folder / "monitor.state", state.kept, state.log)
            state.keep = self._kept.save
            if (kept := self._kept.load()) is not None:
                state.restore(kept)
            state.keep()

    @not_kept
    def close(self) -> None:
        """Ends the snapshot agents, where they do not end with this process."""
        self._state.end_agents()
