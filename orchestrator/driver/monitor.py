"""The monitor: one actor per attempt, through which driver, controller and training loop learn of each other.

It outlives worker groups, and its state outlives its process, see `kept_state`. Its methods are grouped by caller, each
group in a file of its own over one shared state:

    monitor_loop.py          training workers and snapshot agents: reports in, requests out
    monitor_controller.py    Ray Train's controller: restarts, and the number of workers
    monitor_driver.py        the driver: progress, and the request to stop
    monitor_state.py         the shared state
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.driver.evaluations import StartEvaluation
from orchestrator.driver.kept_state import KeptState, count_start, keeping_state
from orchestrator.driver.monitor_controller import ControllerInterface
from orchestrator.driver.monitor_driver import DriverInterface
from orchestrator.driver.monitor_loop import LoopInterface
from orchestrator.driver.monitor_state import MonitorState, StartAgent
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
    """

    def __init__(
        self,
        scaling: ScalingPolicy,
        steps: int,
        start_agent: StartAgent,
        start_evaluation: StartEvaluation | None = None,
        now: Callable[[], float] = time.monotonic,
        folder: Path | None = None,
    ) -> None:
        state = MonitorState(scaling, steps, start_agent, start_evaluation, now)
        super().__init__(state)
        self._kept: KeptState | None = None
        if folder is not None:
            count_start(folder / "monitor.starts")
            self._kept = KeptState(folder / "monitor.state", state.kept, state.log)
            state.keep = self._kept.save
            if (kept := self._kept.load()) is not None:
                state.restore(kept)
            state.keep()
