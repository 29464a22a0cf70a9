"""Set-up by the Makefile and .ci/install.py, on a small script in pip's place: nothing is fetched or installed."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / ".ci" / "install.py"

GOOD = """
echo "Collecting one"
echo "Collecting two"
echo "Installing collected packages: two, one"
mkdir -p {venv}/lib/python3.11/site-packages/one-1.dist-info {venv}/lib/python3.11/site-packages/two-2.dist-info
head -c 3000000 /dev/zero > {venv}/lib/python3.11/site-packages/two.so
echo "Successfully installed one-1 two-2"
"""
BAD = """
for line in $(seq 1 50); do echo "line $line"; done
echo "ERROR: no such package" >&2
exit 3
"""
ENDLESS = """
echo "Collecting one"
sleep 600 &
echo $! > {venv}/pid
wait
"""


def fake_pip(folder: Path, does: str) -> Path:
    pip = folder / ".venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho called with "$@" >> {venv}/calls\n'.format(venv=folder / ".venv"))
    with pip.open("a") as script:
        script.write(does.format(venv=folder / ".venv"))
    pip.chmod(0o755)
    return pip


def install(pip: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, INSTALL, pip, *steps], capture_output=True, text=True, timeout=60)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_plain_lines_where_there_is_no_terminal_and_all_else_in_the_log(tmp_path: Path) -> None:
    pip = fake_pip(tmp_path, GOOD)
    done = install(pip, "-c constraints.txt one==1", "-e .[dev]")
    assert (done.returncode, done.stderr) == (0, "")
    assert 1 <= len(done.stdout.splitlines()) <= 5 and "\r" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("installed: 2 packages, 3 MB, ")
    calls = (tmp_path / ".venv" / "calls").read_text().splitlines()
    assert calls == ["called with install -c constraints.txt one==1", "called with install -e .[dev]"]
    assert (tmp_path / ".venv" / "install.log").read_text().count("Successfully installed") == 2
    assert not (tmp_path / ".venv" / "tmp").exists()


def test_one_line_rewritten_in_place_on_a_terminal(tmp_path: Path) -> None:
    pip = fake_pip(tmp_path, GOOD + "sleep 1.2\n")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "70"}
    with subprocess.Popen(
        [sys.executable, INSTALL, pip, "one"], stdout=theirs, stderr=theirs, env=environment
    ) as process:
        assert process.wait(60) == 0
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.count("\n") == 1 and shown.endswith("\n")
    lines = [line for line in shown.strip().split("\r") if line]
    assert any(line.startswith("installing: 2 of 2 packages, ") for line in lines)
    assert lines[-1].startswith("installed: 2 packages, 3 MB, ") and {len(line) for line in lines[:-1]} == {69}


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(tmp_path: Path) -> None:
    pip = fake_pip(tmp_path, BAD)
    done = install(pip, "one", "never")
    log = tmp_path / ".venv" / "install.log"
    assert done.returncode == 3
    assert "line 32\n" in done.stderr and "line 31\n" not in done.stderr and "ERROR: no such package" in done.stderr
    assert str(log) in done.stderr and "line 1\n" in log.read_text()
    assert len((tmp_path / ".venv" / "calls").read_text().splitlines()) == 1


def test_no_pip(tmp_path: Path) -> None:
    pip = fake_pip(tmp_path, GOOD)
    pip.unlink()
    done = install(pip, "one")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_pip_and_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    started = tmp_path / ".venv" / "pid"
    command = [sys.executable, INSTALL, fake_pip(tmp_path, ENDLESS), "one"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: started.exists() and started.read_text().endswith("\n"), "pip runs")
        finally:
            process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped" in error and "Traceback" not in error
    wait_until(lambda: not alive(int(started.read_text())), "what pip started is ended")


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=60)


@needs_make
def test_running_needs_no_development_tools() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [torch] = [need for need in pins if need.startswith("torch==")]
    for target in ("quickstart", "docstrings"):
        would = make(ROOT, "--dry-run", "--always-make", target).stdout
        assert "[dev]" not in would and ".ready-dev" not in would
        assert would.index(f"'-c constraints.txt {torch}'") < would.index("'-c constraints.txt -e .'")
    for target in ("test", "test-fast", "lint", "type", "chaos", "soak", "sweeps", "bench"):
        would = make(ROOT, "--dry-run", "--always-make", target).stdout
        assert would.index("'-c constraints.txt -e .'") < would.index("'-c constraints.txt -e .[dev]'")


@needs_make
def test_stamps_are_left_by_success_only_and_hold_until_the_project_changes(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/install.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    stamp, developing = tmp_path / ".venv" / ".ready", tmp_path / ".venv" / ".ready-dev"
    calls = tmp_path / ".venv" / "calls"
    pip = fake_pip(tmp_path, BAD)
    failed = make(tmp_path, ".venv/.ready")
    assert failed.returncode != 0 and "line 50" in failed.stderr and not stamp.exists()

    pip.write_text(pip.read_text().replace("exit 3", "exit 0"))
    for target, times in ((".venv/.ready", 3), (".venv/.ready", 3), (".venv/.ready-dev", 4), (".venv/.ready-dev", 4)):
        assert make(tmp_path, target).returncode == 0
        assert len(calls.read_text().splitlines()) == times and stamp.exists()
    later = developing.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert make(tmp_path, "--question", ".venv/.ready").returncode == 1
    assert make(tmp_path, "--question", ".venv/.ready-dev").returncode == 1
