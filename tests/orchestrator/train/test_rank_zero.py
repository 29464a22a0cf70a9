"""RankZero and CheckpointSaver without Ray: what they decide, what they report, and how they retry."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from data.errors import DiskFullError, TransientStoreError
from data.stores.patience import LONGEST_WAIT_S
from orchestrator.errors import FencedError, SnapshotGoneError
from orchestrator.run.goodput import GoodputClock
from orchestrator.run.ledger import StepRow
from orchestrator.run.progress import GroupStart, LoopRequests
from orchestrator.run.state import START, RunState
from orchestrator.snapshots.resume import NodeAgent
from orchestrator.train import rank_zero as rank_zero_module
from orchestrator.train.checkpoint_saver import CheckpointSaver
from orchestrator.train.rank_zero import LEAVING_SAVE_TRIES, OtherRank, RankZero
from orchestrator.train.step_sync import StepDirective

STEPS = 20
DEAD = ray.exceptions.RayActorError()
BUSY = TransientStoreError("The store is busy.")


class Method:
    """An actor's method: records its calls, and answers with the next of `answers`, at the end always the last."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers) or [None]
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append((*arguments, *named.values()))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Pending:
    """A reference whose value has not come."""


def get(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


def wait(refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    return [ref for ref in refs if not isinstance(ref, Pending)], []


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(rank_zero_module, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr("orchestrator.train.checkpoint_saver.time.sleep", lambda seconds: None)


class Group:
    """A job, a node and their fake actors."""

    def __init__(
        self, *saves: Any, every_steps: int | None = None, every_s: float | None = 1e9, patience: float = 1e9
    ) -> None:
        self.agent = SimpleNamespace(save=Method(*saves), weights=Method("weights"))
        names = ["log", "report_checkpoint", "report_evaluation", "report_loss_spike", "report_outage"]
        self.monitor = SimpleNamespace(
            **{name: Method() for name in names},
            evaluate_in_background=Method(),
            report=Method(LoopRequests()),
            begin_group=Method(GroupStart(7, 0.0)),
            is_evaluating=Method(True, False),
            agent_of=Method(self.agent),
        )
        self.job: Any = SimpleNamespace(
            until=STEPS,
            monitor=self.monitor,
            done_before=3,
            report_every_s=1e9,
            config=SimpleNamespace(
                train=SimpleNamespace(steps=STEPS, ema_decay=None),
                checkpoint=SimpleNamespace(every_steps=every_steps, every_s=every_s),
                store=SimpleNamespace(patience=patience),
                evaluates_after=lambda step: step % 2 == 0,
            ),
        )
        agent = NodeAgent(self.job, "here")
        self.node: Any = SimpleNamespace(node_id="here", nodes=["here", "there"], agent=agent)

    def saver(self) -> CheckpointSaver:
        return CheckpointSaver(self.job, self.node, saved_step=0)

    def rank_zero(self, requests: LoopRequests | None = None) -> RankZero:
        """Rank 0 after its first step; `requests` are the monitor's reply to its report."""
        self.monitor.report.answers = [requests or LoopRequests()]
        rank_zero = RankZero(self.job, self.node, RunState(START), GoodputClock("startup"))
        rank_zero.begin(0, "cpu")
        rank_zero.step_done(row(1), [0.1, 0.1])
        return rank_zero

    def log_lines(self) -> str:
        return " ".join(line for (line,) in self.monitor.log.calls)


def row(step: int) -> StepRow:
    return StepRow(
        step=step,
        loss=1.0,
        lr=0.1,
        grad_norm=1.0,
        tokens=10 * step,
        world_size=2,
        step_s=0.01,
        at=0.0,
        sample_ids=np.arange(2),
    )


def public_methods(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


def test_other_ranks_have_the_methods_of_rank_zero() -> None:
    assert public_methods(OtherRank) == public_methods(RankZero)
    assert OtherRank().directive(3) == StepDirective() and OtherRank().begin(3, "cpu") == 0


class TestCheckpointSaver:
    @pytest.mark.parametrize(("step", "is_due"), [(4, False), (5, True), (10, True)])
    def test_every_so_many_steps(self, step: int, is_due: bool) -> None:
        assert Group(every_steps=5).saver().is_due(step, mtbf_s=1e9) == is_due

    @pytest.mark.parametrize(("every_s", "is_due"), [(1e-9, True), (1e9, False), (None, False)])
    def test_every_so_many_seconds(self, every_s: float | None, is_due: bool) -> None:
        assert Group(every_s=every_s).saver().is_due(1, mtbf_s=1e9) == is_due

    def test_a_request_is_served_once(self) -> None:
        saver = Group(4).saver()
        assert not saver.is_requested(0) and saver.is_requested(2)
        saver.start(4, saves=2)
        assert not saver.is_requested(2) and saver.is_requested(3)

    def test_an_upload_runs_until_its_reference_is_ready(self) -> None:
        group = Group(Pending())
        saver = group.saver()
        saver.start(4, saves=0)
        assert saver.is_saving() and saver.saved_step == 0

    def test_a_finished_upload_is_recorded(self) -> None:
        saver = Group(4).saver()
        saver.start(4, saves=0)
        assert not saver.is_saving() and saver.saved_step == 4

    def test_a_busy_store_is_tried_again(self) -> None:
        group = Group(BUSY, 4)
        saver = group.saver()
        saver.save_and_wait(4, saves=0)
        assert saver.saved_step == 4 and len(group.agent.save.calls) == 2
        [(doing, outage), over] = group.monitor.report_outage.calls
        assert (doing, outage.problem) == ("saving checkpoints", "The store is busy.") and over == (doing, None)

    def test_a_store_that_stays_busy_ends_the_run(self) -> None:
        group = Group(BUSY, patience=0.0)
        with pytest.raises(TransientStoreError, match="busy"):
            group.saver().save_and_wait(4, saves=0)
        assert len(group.agent.save.calls) == 1

    def test_training_continues_while_a_store_is_busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        group = Group(BUSY, BUSY, 9, every_steps=1)
        now = 1000.0
        monkeypatch.setattr("orchestrator.train.checkpoint_saver.time.monotonic", lambda: now)
        saver = group.saver()
        for step in (4, 5):
            assert saver.is_due(step, mtbf_s=1e9)
            saver.start(step, saves=0)
            assert not saver.is_saving() and saver.saved_step == 0
            assert not saver.is_due(step + 1, mtbf_s=1e9), "the next try waits, though a save after every step is asked"
            now += LONGEST_WAIT_S
        saver.start(9, saves=0)
        assert not saver.is_saving() and saver.saved_step == 9
        assert saver.is_due(10, mtbf_s=1e9)

    @pytest.mark.parametrize(("age_s", "is_due"), [(599.0, False), (600.0, True)])
    def test_the_interval_counts_from_the_newest_checkpoint(
        self, age_s: float, is_due: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.train.checkpoint_saver.time.monotonic", lambda: 1e6)
        saver = Group(every_s=600.0).saver()
        saver.count_from(age_s)
        assert saver.is_due(1, mtbf_s=1e9) == is_due

    def test_other_errors_end_the_run_at_once(self) -> None:
        group = Group(FencedError("taken over"))
        with pytest.raises(FencedError):
            group.saver().save_and_wait(4, saves=0)
        assert len(group.agent.save.calls) == 1

    def test_an_agent_that_died_is_replaced(self) -> None:
        group, successor = Group(DEAD), Group(4).agent
        saver = group.saver()
        group.monitor.agent_of = Method(successor)
        saver.save_and_wait(4, saves=0)
        assert saver.agent.handle is successor and saver.saved_step == 4
        assert group.monitor.agent_of.calls == [("here", group.job, group.agent)]

    def test_neither_a_dead_agent_nor_a_replaced_snapshot_is_told_as_an_outage(self) -> None:
        group = Group(DEAD, SnapshotGoneError("replaced"), 4)
        group.saver().save_and_wait(4, saves=0)
        assert all(outage is None for _, outage in group.monitor.report_outage.calls)


class TestDirective:
    @pytest.mark.parametrize(
        ("requests", "step", "expected"),
        [
            (LoopRequests(), 3, StepDirective(snapshot=True)),  # the first snapshot is due at once
            (LoopRequests(stop=True), 3, StepDirective(stop=True, snapshot=True)),
            (LoopRequests(pause=True), 3, StepDirective(pause=True, snapshot=True)),
            (LoopRequests(background=True), 4, StepDirective(background=True, snapshot=True)),
            (LoopRequests(background=True), 3, StepDirective(snapshot=True)),  # no evaluation after step 3
            (LoopRequests(background=True, pause=True), 4, StepDirective(pause=True, snapshot=True)),
        ],
    )
    def test_it_carries_the_monitors_requests(self, requests: LoopRequests, step: int, expected: StepDirective) -> None:
        assert Group().rank_zero(requests).directive(step) == expected

    @pytest.mark.parametrize(
        ("requests", "step", "expected"),
        [
            (LoopRequests(), 3, False),
            (LoopRequests(saves=1), 3, True),
            (LoopRequests(pause=True), 3, True),
            (LoopRequests(stop=True), 3, True),
            (LoopRequests(background=True), 4, True),
            (LoopRequests(), STEPS, True),
        ],
    )
    def test_a_snapshot_is_taken_whatever_it_costs_where_one_is_needed(
        self, requests: LoopRequests, step: int, expected: bool
    ) -> None:
        rank_zero = Group(2).rank_zero(requests)
        for cost_s in (0.0, 1e9):  # of the two snapshots before; the next is due in ages
            rank_zero.snapshot_taken(2, cost_s, None)
        assert rank_zero.directive(step).snapshot == expected

    def test_no_save_starts_while_one_is_running(self) -> None:
        group = Group(Pending(), every_steps=1)
        rank_zero = group.rank_zero()
        for step in (2, 3):
            rank_zero.directive(step)
            rank_zero.snapshot_taken(step, 0.0, None)
        assert group.agent.save.calls == [(2,)]


class TestSnapshotTaken:
    def test_a_background_evaluation_gets_its_weights_once(self) -> None:
        group = Group()
        rank_zero = group.rank_zero(LoopRequests(background=True))
        assert rank_zero.directive(2).background
        rank_zero.snapshot_taken(2, 0.0, None)
        assert group.monitor.evaluate_in_background.calls == [(group.job, 2, ["weights"], False)]
        assert not rank_zero.directive(4).background

    @pytest.mark.parametrize(
        ("every_steps", "background", "effect"), [(1, False, "raises"), (None, True, "logs"), (None, False, "nothing")]
    )
    def test_without_room(self, every_steps: int | None, background: bool, effect: str) -> None:
        """A save needs the snapshot; an evaluation is skipped; and otherwise training continues."""
        group, full = Group(every_steps=every_steps), DiskFullError("No room.")
        rank_zero = group.rank_zero(LoopRequests(background=background))
        rank_zero.directive(2)
        with pytest.raises(DiskFullError) if effect == "raises" else nullcontext():
            rank_zero.snapshot_taken(2, 0.0, full)
        assert ("not evaluated. No room." in group.log_lines()) == (effect == "logs")


class TestReports:
    def test_steps_done_before_are_replayed(self) -> None:
        group = Group()
        rank_zero = RankZero(group.job, group.node, RunState({**START, "saved_at": 5.0}), GoodputClock("startup"))
        assert rank_zero.begin(2, "cpu") == 7
        assert group.monitor.report_checkpoint.calls == [(0, 5.0)]
        [(step, nodes, _, device)] = group.monitor.begin_group.calls
        assert (step, nodes, device) == (2, ["here", "there"], "cpu")

    def test_the_first_step_and_the_first_new_one_are_reported_at_once(self) -> None:
        group = Group()
        rank_zero = group.rank_zero()  # steps up to 7 are replayed
        for step in range(2, 10):
            rank_zero.step_done(row(step), [0.1, 0.1])
        reported = [call[1]["step"] for call in group.monitor.report.calls]
        assert reported == [1, 8]
        losses = group.monitor.report.calls[-1][3]
        assert [step for step, _ in losses] == list(range(2, 9))

    def test_a_pause_saves_only_if_asked_to_and_survives_a_busy_store(self) -> None:
        group = Group(BUSY)
        group.rank_zero(LoopRequests(pause=True)).before_pause(2)
        assert group.agent.save.calls == []
        rank_zero = group.rank_zero(LoopRequests(pause=True, saves=1))
        rank_zero.directive(2)
        rank_zero.before_pause(2)
        assert len(group.agent.save.calls) == LEAVING_SAVE_TRIES
        assert "continues from a snapshot in memory" in group.log_lines()

    def test_a_last_save_that_waits_for_the_store_counts_as_such(self) -> None:
        group, clock = Group(BUSY, BUSY, 9), GoodputClock("startup")
        rank_zero = RankZero(group.job, group.node, RunState(START), clock)
        rank_zero.begin(0, "cpu")
        with clock.during("checkpoint"):
            rank_zero.save_and_wait(9)
        assert clock.seconds().keys() == {"startup", "checkpoint", "store_wait"}
        assert group.monitor.report.calls[-1][0] == "saving"

    def test_loss_spikes_scores_and_results_reach_the_monitor(self) -> None:
        group = Group()
        rank_zero = group.rank_zero()
        rank_zero.report_loss_spike(3, "loss=nan in step 3", {2})
        rank_zero.report_scores(4, {"val_loss": 1.0})
        rank_zero.report_result({"step": 5})
        rank_zero.wait_for_evaluation()
        assert group.monitor.report_loss_spike.calls == [(3, "loss=nan in step 3", {2})]
        assert group.monitor.report_evaluation.calls == [(4, {"val_loss": 1.0}, False)]
        assert group.monitor.report.calls[-1][:2] == ("done", {"step": 5})
        assert len(group.monitor.is_evaluating.calls) == 2
