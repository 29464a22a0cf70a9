"""The monitor: one actor per attempt, through which driver, controller and training loop learn of each other.

It outlives worker groups. Its methods are grouped by caller, each group in a file of its own over one shared state:

    monitor_loop.py          training workers and snapshot agents: reports in, requests out
    monitor_controller.py    Ray Train's controller: restarts, and the number of workers
    monitor_driver.py        the driver: progress, and the request to stop
    monitor_state.py         the shared state
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.driver.evaluations import StartEvaluation
from orchestrator.driver.monitor_controller import ControllerInterface
from orchestrator.driver.monitor_driver import DriverInterface
from orchestrator.driver.monitor_loop import LoopInterface
from orchestrator.driver.monitor_state import MonitorState, StartAgent
from orchestrator.policy.scaling import ScalingPolicy


class Monitor(LoopInterface, ControllerInterface, DriverInterface):
    """Body of the actor. No method waits.

    Args:
        scaling: decides on the number of workers.
        steps: length of the run.
        start_agent: starts the snapshot agent of a node.
        start_evaluation: starts a background evaluation; None: the workers always evaluate themselves.
        now: monotonic clock, seconds.
    """

    def __init__(
        self,
        scaling: ScalingPolicy,
        steps: int,
        start_agent: StartAgent,
        start_evaluation: StartEvaluation | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(MonitorState(scaling, steps, start_agent, start_evaluation, now))
