"""The record and its fence: one writer at a time, and a clear error for the one that must stop."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DamagedObjectError, TransientStoreError
from data.stores.local import LocalStore
from orchestrator.errors import FencedError, RunInUseError, UnknownRunError
from orchestrator.run import fence as fence_module
from orchestrator.run.fence import PRESUMED_DEAD_S, Fence, check_fence
from orchestrator.run.record import (
    DECISIONS,
    DISRUPTIONS,
    EVALUATIONS,
    OUTAGES,
    RECORD,
    Attempt,
    RunRecord,
    load_record,
    shortened,
)
from tests.orchestrator.run.builders import attempt, disruption, record_of

FIELDS = {"train.lr": 1e-3}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def claim(store: LocalStore, *, keep_pins: bool = True, takeover: bool = False) -> Fence:
    return Fence.claim(store, "night", FIELDS, keep_pins=keep_pins, takeover=takeover)


def rewrite_last(store: LocalStore, **fields: object) -> None:
    """Change the last attempt behind the fence's back, as if it were another machine's or an older one."""
    record = load_record(store)
    last = dataclasses.replace(record.last, **fields)
    store.put(RECORD, dataclasses.replace(record, attempts=(*record.attempts[:-1], last)).to_json())


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.kill()


def test_the_record_of_no_run(store: LocalStore) -> None:
    with pytest.raises(UnknownRunError, match=r"There is no run at .*`manta train RECIPE` makes one"):
        load_record(store)


def test_a_claim_creates_the_run_and_its_first_attempt(store: LocalStore) -> None:
    fence = claim(store, keep_pins=False)
    record = load_record(store)
    assert record == fence.record
    assert (record.run, record.result_fields, record.last.number, record.last.status) == (
        "night",
        FIELDS,
        1,
        "preparing",
    )


@pytest.mark.parametrize(
    ("key", "name", "fields", "told"),
    [
        (RECORD, "day", {"seed": 1}, 'run.json is the record of run \'night\'. .*"run": "day"'),
        (RECORD, "night", {"sweep": "night", "run.seed": 1}, "run.json is the record of a sweep, not of a run"),
        ("sweep.json", "night", {"seed": 1}, "sweep.json is the record of a run, not of a sweep"),
        ("sweep.json", "day", {"sweep": "night"}, "sweep.json is the record of sweep 'night'"),
    ],
)
def test_the_record_of_another_run_is_named(
    store: LocalStore, key: str, name: str, fields: dict[str, Any], told: str
) -> None:
    store.put(key, dataclasses.replace(record_of(0), result_fields=fields).to_json())
    with pytest.raises(DamagedObjectError, match=told):
        load_record(store, key, name)
    with pytest.raises(DamagedObjectError, match=told):
        Fence.claim(store, name, fields, keep_pins=True, key=key)


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("attempts", [], "attempts: their numbers are"),
    ("attempts.0.number", 2, "attempts: their numbers are"),
    ("attempts.0.heartbeat_at", "x", "attempts.0.heartbeat_at = 'x': Input should be a valid number"),
    ("attempts.0.started_at", None, "attempts.0.started_at = None"),
    ("attempts.0.started_at", 1e300, "attempts.0.started_at = 1e+300"),
    ("attempts.0.goodput", None, "attempts.0.goodput = None"),
    ("attempts.0.goodput", {"lunch": 1.0}, "attempts.0.goodput.lunch"),
    ("attempts.0.saved_step", "20", "attempts.0.saved_step = '20': Input should be a valid integer"),
    ("attempts.0.step", True, "attempts.0.step = True"),
    ("attempts.0.status", "done", "attempts.0.status = 'done'"),
    ("attempts.0.evaluations", [1], "attempts.0.evaluations.0 = 1"),
    ("attempts.0.disruptions", [{"cause": "node"}], "attempts.0.disruptions.0.step: Field required"),
    ("result", {"val_loss": "x"}, "result.val_loss = 'x'"),
    ("manifest", "../other", "manifest = '../other'"),
    ("cleaning", {"report": []}, "cleaning: it has no code"),
    ("results", {}, "results = {}"),
]


@pytest.mark.parametrize(("name", "value", "told"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_its_field(name: str, value: Any, told: str) -> None:
    fields = json.loads(record_of(0).to_json())
    del fields["sha256"]
    *path, last = name.split(".")
    holder = fields["attempts"][0] if path else fields
    holder[last] = value
    with pytest.raises(DamagedObjectError, match=rf"run.json is damaged \(.*{re.escape(told)}"):
        RunRecord.from_json(json.dumps(fields).encode())


def test_a_record_survives_json(store: LocalStore) -> None:
    claim(store).update(attempt={"goodput": {"training": 1.5}, "from_step": 0, "first_step_s": 2.5}, manifest="m")
    record = load_record(store)
    assert RunRecord.from_json(record.to_json()) == record
    assert record.last.goodput == {"training": 1.5} and isinstance(record.attempts, tuple)


def test_a_record_of_an_earlier_version_has_no_outages(store: LocalStore) -> None:
    stored = json.loads(claim(store).record.to_json())
    del stored["attempts"][0]["outages"]
    assert RunRecord.from_json(json.dumps(stored).encode()).last.outages == []


def test_updates_keep_what_they_do_not_name(store: LocalStore) -> None:
    fence = claim(store)
    began = fence.record.last.heartbeat_at
    fence.update(manifest="m", tokenizer="t")
    fence.update(attempt={"status": "running", "step": 7})
    fence.update(result={"val_loss": 2.0})
    record = load_record(store)
    assert (record.manifest, record.tokenizer, record.result) == ("m", "t", {"val_loss": 2.0})
    assert (record.last.status, record.last.step, len(record.attempts)) == ("running", 7, 1)
    assert record.last.heartbeat_at >= began


def test_what_was_pinned_stays_pinned_once_the_run_has_begun(store: LocalStore) -> None:
    claim(store).update(manifest="m", tokenizer="t")
    assert claim(store, keep_pins=True).record.manifest == "m"
    fresh = claim(store, keep_pins=False).record
    assert (fresh.manifest, fresh.tokenizer, fresh.last.number) == (None, None, 3)


def test_a_live_process_on_this_machine_keeps_its_run(
    store: LocalStore, other_process: subprocess.Popen[bytes]
) -> None:
    claim(store)
    pid = other_process.pid
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    rewrite_last(store, pid=pid, pid_started=start, heartbeat_at=0.0)  # no heartbeat for long, but the process is alive
    with pytest.raises(RunInUseError, match=rf"attempt 1 on .* \(pid {pid}\) is running on this machine.*--takeover"):
        claim(store)
    assert len(load_record(store).attempts) == 1


def test_a_dead_process_on_this_machine_is_taken_over_at_once(
    store: LocalStore, other_process: subprocess.Popen[bytes]
) -> None:
    claim(store)
    rewrite_last(
        store, pid=other_process.pid, pid_started="1", heartbeat_at=time.time()
    )  # another process has the same pid
    assert claim(store).record.last.number == 2

    pid = other_process.pid
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    rewrite_last(store, pid=pid, pid_started=start, heartbeat_at=time.time())
    other_process.kill()
    other_process.wait()
    assert claim(store).record.last.number == 3


@pytest.mark.parametrize("silence_s, alive", [(1.0, True), (PRESUMED_DEAD_S - 2, True), (PRESUMED_DEAD_S + 1, False)])
def test_an_attempt_on_another_machine_is_alive_while_it_sends_heartbeats(
    store: LocalStore, silence_s: float, alive: bool
) -> None:
    """The other machine's clock, by which it wrote `heartbeat_at`, is an hour off either way."""
    for skew_s in (-3600.0, 3600.0):
        claim(store, takeover=True)
        rewrite_last(store, host="elsewhere", boot_id="other", heartbeat_at=time.time() - silence_s + skew_s)
        os.utime(store.url_of(RECORD), times=(0.0, time.time() - silence_s))
        before = len(load_record(store).attempts)
        if alive:
            with pytest.raises(RunInUseError, match=r"attempt \d+ on elsewhere .*sent a heartbeat \d+ s ago"):
                claim(store)
        else:
            assert claim(store).record.last.number == before + 1


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_an_attempt_that_recorded_its_end_is_not_waited_for(store: LocalStore, status: str) -> None:
    claim(store)
    rewrite_last(store, boot_id="other", status=status)
    assert claim(store).record.last.number == 2


def test_a_takeover_fences_off_a_live_attempt(store: LocalStore) -> None:
    older = claim(store)
    rewrite_last(store, host="elsewhere", boot_id="other")
    newer = claim(store, takeover=True)
    check_fence(store, 2)
    message = r"Attempt 1 of run 'night' stops: attempt 2 on .* has taken the run over.*manta show night"
    with pytest.raises(FencedError, match=message):
        check_fence(store, 1)
    with pytest.raises(FencedError, match=message):
        older.update(attempt={"step": 5})
    newer.update(attempt={"step": 6})
    with pytest.raises(FencedError, match=message):  # and again
        older.update(attempt={"status": "failed"})
    assert load_record(store) == newer.record and newer.record.last.step == 6


def test_of_two_simultaneous_claims_one_succeeds(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one claims after the first has read the record and before it writes."""
    for keep_pins in (False, True):  # the run is new, then it is not
        real, rival = fence_module._this_attempt, []

        def interrupted(*args: object, real=real, rival=rival, keep_pins=keep_pins) -> Attempt:
            if not rival:
                rival.append(None)
                rival[0] = claim(store, keep_pins=keep_pins)
            return real(*args)

        with monkeypatch.context() as patched:
            patched.setattr(fence_module, "_this_attempt", interrupted)
            with pytest.raises(RunInUseError, match="claimed by another command at this very moment"):
                claim(store, keep_pins=keep_pins)
        rival[0].update(attempt={"step": 1})
        assert load_record(store) == rival[0].record


@pytest.mark.parametrize(("heartbeats", "succeeds"), [(1, True), (fence_module.CLAIM_TRIES, False)])
def test_a_heartbeat_in_between_does_not_defeat_a_takeover(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, heartbeats: int, succeeds: bool
) -> None:
    older, left, real = claim(store), [None] * heartbeats, fence_module._this_attempt

    def interrupted(*args: object) -> Attempt:
        if left:
            left.pop()
            older.update(attempt={"step": len(left)})
        return real(*args)

    monkeypatch.setattr(fence_module, "_this_attempt", interrupted)
    if succeeds:
        assert claim(store, takeover=True).record.last.number == 2
        with pytest.raises(FencedError):
            older.update()
    else:
        with pytest.raises(RunInUseError, match="at this very moment"):
            claim(store, takeover=True)


class Unanswered(LocalStore):
    """A store that performs conditional puts and loses the answers of the next `lost`."""

    lost = 0

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        answer = super().put_if_match(key, data, etag)
        if self.lost:
            self.lost -= 1
            raise TransientStoreError("no answer")
        return answer


def test_a_put_with_a_lost_answer_does_not_fence_its_own_attempt(tmp_path: Path) -> None:
    store = Unanswered(str(tmp_path))
    fence = claim(store)
    for number in range(3):
        store.lost = 1
        with pytest.raises(TransientStoreError):
            fence.update(attempt={"step": number})
    fence.update(attempt={"step": 9})
    assert load_record(store).last.step == 9
    newer = claim(store, takeover=True)
    store.lost = 1
    with pytest.raises(FencedError):
        fence.update(attempt={"step": 10})
    assert load_record(store) == newer.record


@pytest.mark.parametrize(
    "from_steps, attempt, step, belongs",
    [
        ([0], 1, 50, True),
        ([0, 100], 1, 100, True),
        ([0, 100], 1, 101, False),  # written by the older one after the newer one continued from 100
        ([0, 100], 2, 101, True),
        ([0, 100, 50], 2, 101, False),
        ([0, 100, 50], 1, 50, True),
        ([0, 100, 50], 1, 60, False),
        ([0, None], 1, 500, True),  # the newer one has not recorded its step yet
        ([0, 0], 1, 1, False),
        ([0, 100, None, 200], 2, 200, True),
    ],
)
def test_what_belongs_to_the_run(from_steps: list[int | None], attempt: int, step: int, belongs: bool) -> None:
    assert record_of(*from_steps).continues(attempt, step) is belongs


@given(st.data())
def test_the_steps_that_belong_to_the_run_have_no_gaps(data: st.DataObject) -> None:
    """Replaying the attempts, dropping at each start the steps after its first, leaves the same steps."""
    kept: list[tuple[int, int]] = []  # (attempt, step), of steps in order
    written: list[tuple[int, int]] = []
    from_steps: list[int | None] = []
    for number in range(1, data.draw(st.integers(1, 5)) + 1):
        start = data.draw(st.sampled_from([0, *(step for _, step in kept)]))
        from_steps.append(start)
        steps = [(number, step) for step in range(start + 1, start + 1 + data.draw(st.integers(0, 5)))]
        kept = [(who, step) for who, step in kept if step <= start] + steps
        written += steps
    record = record_of(*from_steps)
    assert [pair for pair in written if record.continues(*pair)] == kept
    assert [step for _, step in kept] == list(itertools.islice(itertools.count(1), len(kept)))


@pytest.mark.parametrize(
    ("name", "most"), [("disruptions", DISRUPTIONS), ("decisions", DECISIONS), ("outages", OUTAGES)]
)
def test_the_lists_of_all_attempts_stay_as_short_as_those_of_one(name: str, most: int) -> None:
    entries = [{"number": number} for number in range(most + 7)]
    cuts = [0, 5, most // 2, len(entries)]
    attempts = [attempt(**{name: entries[first:end]}) for first, end in itertools.pairwise(cuts)]
    first, *others = (getattr(each, name) for each in shortened(attempts))
    assert [*first, *itertools.chain(*others)] == entries[-most:] and first == []
    assert shortened(attempts[1:2]) == (attempts[1],), "a short list stays as it is"


def test_evaluations_of_all_attempts_stay_few_and_spread_over_the_run() -> None:
    evaluations = [[{"step": 1000 * at + step} for step in range(EVALUATIONS)] for at in range(2)]
    kept = [each.evaluations for each in shortened([attempt(evaluations=each) for each in evaluations])]
    assert [len(each) for each in kept] == [EVALUATIONS // 2] * 2
    assert [each[-1] for each in kept] == [each[-1] for each in evaluations]


def test_a_claim_shortens_the_lists_and_keeps_the_counts(store: LocalStore) -> None:
    fence = claim(store)
    disruptions = [disruption(step=step) for step in range(DISRUPTIONS)]
    fence.update(attempt={"disruptions": disruptions, "restart_counts": {"node": 9000}, "status": "failed"})
    fence = claim(store)
    fence.update(attempt={"disruptions": disruptions[:1], "restart_counts": {"node": 1}, "status": "failed"})
    first, second, _ = claim(store).record.attempts
    assert first.disruptions == disruptions[1:] and second.disruptions == disruptions[:1]
    assert (first.restart_counts, second.restart_counts) == ({"node": 9000}, {"node": 1})


def test_a_record_of_an_older_version_has_counts(store: LocalStore) -> None:
    content = json.loads(claim(store).record.to_json())
    del content["attempts"][0]["restart_counts"]
    content["attempts"][0]["disruptions"] = [disruption(cause) for cause in ("node", "resize", "node")]
    assert RunRecord.from_json(json.dumps(content).encode()).last.restart_counts == {"node": 2, "resize": 1}


def test_a_record_with_fields_of_another_version_can_be_read(store: LocalStore) -> None:
    record = claim(store).record
    content = json.loads(record.to_json())
    content["attempts"][0] |= {"restarts": 3}
    assert RunRecord.from_json(json.dumps(content).encode()) == record
