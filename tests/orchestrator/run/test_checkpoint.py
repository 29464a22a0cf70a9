"""Checkpoints exist once their manifest does; the highest step is used; damaged ones are reported and passed over."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.errors import CheckpointDamagedError, FencedError
from orchestrator.run.checkpoint import (
    CheckpointName,
    fetch_checkpoint,
    fetch_newest,
    list_checkpoints,
    newest_undamaged,
    prune,
    quarantine,
    write_checkpoint,
)
from orchestrator.run.record import RunRecord
from tests.orchestrator.run.builders import record_of

FILES = {"model.safetensors": b"weights", "optimizer.safetensors": b"moments"}


ALONE = record_of(0)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


class Saver:
    """Writes small checkpoints into a store."""

    def __init__(self, store: LocalStore, scratch: Path) -> None:
        self.store, self.scratch = store, scratch

    def save(self, step: int, attempt: int = 1, before_commit=lambda: None) -> int:
        snapshot = self.scratch / f"snapshot-{step}-{attempt}"
        snapshot.mkdir()
        for name, content in FILES.items():
            (snapshot / name).write_bytes(content + str(step).encode())
        return write_checkpoint(self.store, CheckpointName(step, attempt), {"step": step}, snapshot, before_commit)

    def newest(self, run: RunRecord = ALONE, files: tuple[str, ...] = tuple(FILES)) -> int | None:
        """Step of the newest checkpoint that can be fetched, its files compared with what was saved."""
        folder = self.scratch / "fetched"
        folder.mkdir(exist_ok=True)
        fetched = fetch_newest(self.store, run, files, folder)
        if fetched is None:
            return None
        name, state = fetched
        assert state == {"step": name.step}
        assert [(folder / file).read_bytes() for file in files] == [FILES[f] + str(name.step).encode() for f in files]
        return name.step


@pytest.fixture
def saver(store: LocalStore, tmp_path: Path) -> Saver:
    return Saver(store, tmp_path)


def test_a_run_without_checkpoints(saver: Saver) -> None:
    assert list_checkpoints(saver.store) == [] and saver.newest() is None


def test_all_files_are_fetched_if_none_is_named(saver: Saver, tmp_path: Path) -> None:
    saver.save(200)
    folder = tmp_path / "whole"
    folder.mkdir()
    assert fetch_checkpoint(saver.store, CheckpointName(200, 1), None, folder) == {"step": 200}
    assert {path.name for path in folder.iterdir()} == {*FILES, "state.json"}


def test_what_was_saved_is_what_is_fetched(saver: Saver) -> None:
    size = saver.save(200)
    assert saver.newest() == 200
    listed = {info.key: info.size for info in saver.store.list("checkpoints/")}
    prefix = "checkpoints/step-00000200-a1"
    manifest = json.loads(saver.store.get(f"{prefix}/manifest.json"))
    assert listed.keys() == {f"{prefix}/{name}" for name in (*FILES, "state.json", "manifest.json")}
    assert size == sum(listed[f"{prefix}/{name}"] for name in (*FILES, "state.json"))
    for name in (*FILES, "state.json"):
        content = saver.store.get(f"{prefix}/{name}")
        expected = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert manifest["files"][name] == expected


def test_only_the_files_asked_for_are_fetched(saver: Saver, tmp_path: Path) -> None:
    saver.save(1)
    saver.newest(files=("model.safetensors",))
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["model.safetensors", "state.json"]


def test_there_is_no_checkpoint_until_its_manifest_is_written(saver: Saver) -> None:
    saver.save(100)
    seen: list[object] = []

    def list_uploaded() -> None:
        uploaded = sorted(info.key.rpartition("/")[2] for info in saver.store.list("checkpoints/step-00000200"))
        seen.extend([uploaded, [name.step for name in list_checkpoints(saver.store)]])

    saver.save(200, before_commit=list_uploaded)
    assert seen == [["model.safetensors", "optimizer.safetensors", "state.json"], [100]]
    assert saver.newest() == 200


def test_a_fenced_writer_leaves_no_checkpoint(saver: Saver) -> None:
    saver.save(100)

    def fence() -> None:
        raise FencedError("stop")

    with pytest.raises(FencedError, match="stop"):
        saver.save(200, before_commit=fence)
    assert [name.step for name in list_checkpoints(saver.store)] == [100] and saver.newest() == 100


def test_the_newest_is_the_highest_step_in_any_order_of_writing(saver: Saver) -> None:
    for step in (300, 99_999_999, 100, 100_000_000, 200):
        saver.save(step)
    assert [name.step for name in list_checkpoints(saver.store)] == [100, 200, 300, 99_999_999, 100_000_000]
    assert saver.newest() == 100_000_000


def test_of_two_at_one_step_the_later_attempts_is_used(saver: Saver) -> None:
    saver.save(10, attempt=10)
    saver.save(10, attempt=9)
    assert list_checkpoints(saver.store)[-1] == CheckpointName(10, 10)


def test_checkpoints_of_a_fenced_attempt_are_not_listed(saver: Saver) -> None:
    saver.save(100)
    saver.save(150)  # committed after attempt 2 had continued from 100
    assert saver.newest(record_of(0, 100)) == 100
    saver.save(120, attempt=2)
    assert saver.newest(record_of(0, 100)) == 120
    assert saver.newest(record_of(0, None)) == 150  # until attempt 2 records where it continued from
    assert [str(name) for name in list_checkpoints(saver.store, record_of(0, 100))] == [
        "step-00000100-a1",
        "step-00000120-a2",
    ]


DAMAGE = {
    "a file cut off": ("model.safetensors", lambda content: content[:-1], "model.safetensors has sha256"),
    "a bit flipped": (
        "optimizer.safetensors",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        "optimizer.safetensors has sha256",
    ),
    "a file gone": ("optimizer.safetensors", None, "There is no .*optimizer.safetensors"),
    "the state changed": ("state.json", lambda _: b"{}", "state.json has sha256"),
    "the manifest cut off": ("manifest.json", lambda content: content[:20], "is damaged"),
    "the manifest empty": ("manifest.json", lambda _: b"", "is damaged"),
    "the manifest another thing": ("manifest.json", lambda _: b"[]", "is damaged"),
    "the manifest without a file": (
        "manifest.json",
        lambda content: content.replace(b"model.safetensors", b"nodel.safetensors"),
        "is damaged: 'model.safetensors'",
    ),
    "the manifest without end": ("manifest.json", lambda _: b"[" * 100_000, "is damaged: manifest.json is damaged"),
    "the manifest with a number": ("manifest.json", lambda _: b'{"files": 3}', r"manifest.json is damaged \(files = 3"),
    "the manifest with a path": (
        "manifest.json",
        lambda content: content.replace(b"model.safetensors", b"../../other/model.safetensors"),
        r"manifest.json is damaged \(files.../../other/model.safetensors",
    ),
}


def damage(store: LocalStore, step: int, what: str) -> None:
    file, change, _ = DAMAGE[what]
    key = f"checkpoints/{CheckpointName(step, 1)}/{file}"
    if change is None:
        store.delete(key)
    else:
        store.put(key, change(store.get(key)))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    saver: Saver, what: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    saver.save(100)
    saver.save(200)
    damage(saver.store, 200, what)
    assert saver.newest() == 100
    (line,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert "step-00000200-a1 is damaged" in line.getMessage()
    assert "The one before it is used." in line.getMessage()
    with pytest.raises(CheckpointDamagedError, match=DAMAGE[what][2]):
        fetch_checkpoint(saver.store, CheckpointName(200, 1), tuple(FILES), tmp_path)


def test_a_checkpoint_of_another_step_is_none_of_this_one(saver: Saver, tmp_path: Path) -> None:
    """Its files are sound, and were copied over those of a newer one."""
    saver.save(100)
    saver.save(200)
    for info in list(saver.store.list(f"checkpoints/{CheckpointName(100, 1)}/")):
        file = info.key.rpartition("/")[2]
        saver.store.put(f"checkpoints/{CheckpointName(200, 1)}/{file}", saver.store.get(info.key))
    with pytest.raises(CheckpointDamagedError, match=r"step-00000200-a1 is damaged: it is of step 100"):
        fetch_checkpoint(saver.store, CheckpointName(200, 1), tuple(FILES), tmp_path)
    assert saver.newest() == 100


@pytest.mark.parametrize(
    ("state", "attempt", "is_sound"),
    [
        ({"created_at": ALONE.created_at}, 1, True),
        ({"created_at": ALONE.created_at + 1}, 1, False),
        ({"created_at": ALONE.created_at + 1}, 0, True),  # forked from another run
        ({"config": {"run": ALONE.run}}, 1, True),  # of version 0.2.0
        ({"config": {"run": "other"}}, 1, False),
        ({"config": {"run": "other"}}, 0, True),
    ],
)
def test_a_checkpoint_of_another_run_is_none_of_this_one(
    saver: Saver, state: dict[str, Any], attempt: int, is_sound: bool
) -> None:
    name, snapshot = CheckpointName(200, attempt), saver.scratch / "snapshot"
    snapshot.mkdir()
    write_checkpoint(saver.store, name, {"step": 200, **state}, snapshot, lambda: None)
    if is_sound:
        assert fetch_checkpoint(saver.store, name, (), saver.scratch, ALONE)["step"] == 200
    else:
        with pytest.raises(CheckpointDamagedError, match="is damaged: it is of another run"):
            fetch_checkpoint(saver.store, name, (), saver.scratch, ALONE)
        assert fetch_checkpoint(saver.store, name, (), saver.scratch)["step"] == 200


def test_if_all_are_damaged_the_run_does_not_silently_restart(saver: Saver) -> None:
    for step, what in ((100, "a file gone"), (200, "a bit flipped")):
        saver.save(step)
        damage(saver.store, step, what)
    with pytest.raises(CheckpointDamagedError, match="No checkpoint is left to continue from") as raised:
        saver.newest()
    assert all(f"step-00000{step}-a1" in str(raised.value) for step in (100, 200))


def test_pruning_keeps_the_newest(saver: Saver) -> None:
    for step in (1, 2, 3, 10):
        saver.save(step)
    prune(saver.store, ALONE, keep=2)
    assert [name.step for name in list_checkpoints(saver.store)] == [3, 10]
    assert {info.key.split("/")[1] for info in saver.store.list("checkpoints/")} == {
        "step-00000003-a1",
        "step-00000010-a1",
    }
    prune(saver.store, ALONE, keep=5)
    assert [name.step for name in list_checkpoints(saver.store)] == [3, 10]


def test_pruning_sweeps_partial_checkpoints_that_nobody_completes(saver: Saver) -> None:
    """Not those that an upload may still complete, and not the files of a damaged one."""

    def killed() -> None:
        raise ConnectionError("killed here")

    for step, attempt in ((5, 1), (9, 1), (6, 2), (7, 2), (12, 2)):
        with pytest.raises(ConnectionError):
            saver.save(step, attempt, before_commit=killed)
    for step in (7, 10):
        saver.save(step, attempt=3)
    saver.save(8, attempt=3)
    quarantine(saver.store, CheckpointName(8, 3))
    for step in (6, 9):  # of the newest attempt
        with pytest.raises(ConnectionError):
            saver.save(step, attempt=3, before_commit=killed)
    for path in ("step-00000004-a3", "step-00000011-a3"):
        folder = Path(saver.store.root) / "checkpoints" / path
        folder.mkdir()
        (folder / ".tmp~killed").write_bytes(b"in a write")
    prune(saver.store, record_of(0, 0, 0), keep=2)
    assert {key.split("/")[1] for key in [each.key for each in saver.store.list()] + saver.store.unfinished()} == {
        "step-00000007-a3",
        "step-00000008-a3",
        "step-00000009-a3",
        "step-00000010-a3",
        "step-00000011-a3",
    }
    assert [name.step for name in list_checkpoints(saver.store)] == [7, 10]


def test_a_checkpoint_pruned_while_it_is_fetched_is_replaced_by_the_newer_one(
    saver: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    """With `keep: 1`, an upload that ends during a restore prunes what the restore has chosen."""
    saver.save(100)

    def fetch(name: CheckpointName) -> int:
        if name.step == 100:
            saver.save(200)
            prune(saver.store, ALONE, keep=1)
        return int(fetch_checkpoint(saver.store, name, (), saver.scratch)["step"])

    assert newest_undamaged(saver.store, ALONE, fetch) == 200
    assert caplog.records == [], "nothing is damaged"


def test_a_pruned_checkpoint_is_not_quarantined(saver: Saver) -> None:
    saver.save(100)
    saver.save(200)
    quarantine(saver.store, CheckpointName(50, 1))
    quarantine(saver.store, CheckpointName(200, 1))
    assert [name.step for name in list_checkpoints(saver.store)] == [100]
    kept = {each.key for each in saver.store.list("checkpoints/")}
    assert "checkpoints/step-00000200-a1/manifest.damaged.json" in kept
    assert "checkpoints/step-00000200-a1/model.safetensors" in kept and not any("00000050" in key for key in kept)


def test_pruning_deletes_the_manifest_first(saver: Saver, tmp_path: Path) -> None:
    deleted: list[str] = []

    class Watched(LocalStore):
        def delete(self, key: str) -> None:
            deleted.append(key)
            super().delete(key)

        def delete_prefix(self, prefix: str) -> int:
            raise ConnectionError("killed here")

    saver.save(1)
    saver.save(2)
    with pytest.raises(ConnectionError):
        prune(Watched(saver.store.root), ALONE, keep=1)
    assert deleted == ["checkpoints/step-00000001-a1/manifest.json"]
    assert [name.step for name in list_checkpoints(saver.store)] == [2] and saver.newest() == 2
