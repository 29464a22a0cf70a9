"""What the benchmarks share: a scratch folder, `manta` as a process, taking turns, and results as JSON and a table.

Machines are shared and noisy, so nothing here compares numbers of different days. Contestants run in turn in one
benchmark, A B A B ..., and what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.local.processes import of_session
from cluster.local.s3 import LocalS3
from data.errors import MantaError
from orchestrator.commands.quickstart import QUICKSTARTS, RECIPE, make_corpus
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.run.ledger import metrics_lines
from orchestrator.run.record import Attempt, load_record
from orchestrator.run.run import open_run, reaching_storage, stores
from orchestrator.run.summary import summary_of_run

RESULTS = Path(__file__).resolve().parent / "results"
COMMAND_TIMEOUT_S = 1200.0
POLL_INTERVAL_S = 0.5
SIGN_EVERY_S = 5.0
"""Reading a run's record costs a twentieth of a second on either side: more often, it would slow what is measured."""

_T = TypeVar("_T")


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser whose --help is the benchmark's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Help)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


# ---------------------------------------------------------------------------------------------------------------------
# Places and processes
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for everything the benchmark writes, Ray's own files included; gone afterwards, as is its S3 server."""
    folder = Path(tempfile.mkdtemp(prefix="manta-bench-"))
    os.environ["RAY_TMPDIR"] = str(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `timeout` and `kill` leave nothing behind either
    try:
        yield folder
    finally:
        server = LocalS3(folder / "s3")
        if server.is_running():  # left behind by a command that was killed
            with server:
                pass
        shutil.rmtree(folder, ignore_errors=True)


class Command:
    """A program in a session of its own; leaving the block ends whatever of it still runs.

    Attributes:
        lines: what it has printed so far, each line with the seconds since the start at which it came.
    """

    def __init__(self, *arguments: str, folder: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        own = {"RAY_TMPDIR": os.environ["RAY_TMPDIR"], "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        self.lines: list[tuple[float, str]] = []
        self._arguments = arguments
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**inherited, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The program's own process, which also gives its session its id."""
        return self._process.pid

    def wait(self, look: Callable[[], object] = lambda: None) -> float:
        """Wait for its end, calling `look` every POLL_INTERVAL_S; returns the seconds it took.

        Raises:
            SystemExit: it failed or took too long; the message has its output.
        """
        while self._process.poll() is None:
            look()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_INTERVAL_S)
            if time.monotonic() - self._began > COMMAND_TIMEOUT_S:
                self._fail(f"still running after {COMMAND_TIMEOUT_S:.0f} s")
        took_s = time.monotonic() - self._began
        self._reader.join(5)
        if self._process.returncode != 0:
            self._fail(f"ended with status {self._process.returncode}")
        return took_s

    def processes(self) -> dict[int, str]:
        """Title of every living process of the session by its pid (Linux)."""
        return {pid: _title(pid) for pid in of_session(self.pid)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ray's processes make groups of their own and outlive their parents, but never leave the session.
        while pids := of_session(self.pid):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((round(time.monotonic() - self._began, 3), line.rstrip()))

    def _fail(self, what: str) -> None:
        output = "\n".join(line for _, line in self.lines[-40:])
        raise SystemExit(f"{' '.join(self._arguments)} {what}:\n{output}")


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


@dataclass
class Memory:
    """Resident memory of a process as Linux tells it, bytes.

    Attributes:
        peak: the most there ever was, everything included (VmHWM).
        private: heap and stacks now (RssAnon); `files` are mapped libraries, `shared` is mapped shared memory.
    """

    peak: int = 0
    private: int = 0
    files: int = 0
    shared: int = 0

    @classmethod
    def of(cls, pid: int) -> Memory | None:
        """That of a process; None where there is no such process any more."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
        if "VmHWM" not in kib:
            return None
        return cls(*(kib[name] * 1024 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")))


class MemoryWatch:
    """The most memory seen in each process of a command whose title one knows."""

    def __init__(self, command: Command, roles: Mapping[str, str]) -> None:
        """`roles`: what the process's title contains, by the name to report it under."""
        self._command, self._roles = command, roles
        self.seen: dict[str, dict[int, Memory]] = {role: {} for role in roles}

    def look(self) -> None:
        """Look once."""
        for pid, title in self._command.processes().items():
            for role, part in self._roles.items():
                if part in title and (memory := Memory.of(pid)):
                    before = self.seen[role].get(pid, Memory())
                    self.seen[role][pid] = Memory(
                        *(max(old, new) for old, new in zip(_values(before), _values(memory), strict=True))
                    )


def _values(memory: Memory) -> tuple[int, ...]:
    return memory.peak, memory.private, memory.files, memory.shared


# ---------------------------------------------------------------------------------------------------------------------
# Runs of manta
# ---------------------------------------------------------------------------------------------------------------------


def manta(*arguments: str) -> list[str]:
    """The installed command as a user calls it."""
    return [str(Path(sys.executable).with_name("manta")), *arguments]


def quickstart_overrides(folder: Path) -> list[str]:
    """The quickstart recipe with its store in `folder`."""
    return [f"store.serve={folder / 's3'}"]


def as_options(overrides: Sequence[str]) -> list[str]:
    """Overrides as the command takes them."""
    return [part for override in overrides for part in ("--set", override)]


def prepare_quickstart(folder: Path) -> None:
    """Corpus, vocabulary and tokens of the quickstart recipe, in a store of their own."""
    with reaching_storage(load_recipe(RECIPE, quickstart_overrides(folder))) as config:
        make_corpus(config, _QuietConsole(), QUICKSTARTS["modules"])
    with Command(*manta("prepare", str(RECIPE), *as_options(quickstart_overrides(folder))), folder=folder) as command:
        command.wait()


class _QuietConsole:
    def line(self, text: str) -> None:
        """Nothing."""


@dataclass
class FinishedRun:
    """A run that has ended.

    Attributes:
        summary: what `manta show --json` prints.
        rows: what metrics.jsonl holds.
        signs: the attempt's record as it was seen while the run went on, oldest first.
        lines: the command's output, see `Command`.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    signs: list[Attempt] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)

    def losses(self) -> list[float]:
        """Loss of every step."""
        return [row["loss"] for row in self.rows]


def train(
    recipe: Path,
    overrides: Sequence[str],
    folder: Path,
    look: Callable[[Command], Callable[[], object]] = lambda _: lambda: None,
    *,
    serve: bool = True,
) -> FinishedRun:
    """`manta train` to its end, in a process of its own.

    Args:
        look: given the command, returns what is to be called every POLL_INTERVAL_S while it runs.
        serve: have the store running from before the command, and watch the run through it; else the command starts
            it by itself, and `signs` has only the last one.
    """
    config = load_recipe(recipe, overrides)
    signs: list[Attempt] = []
    with ExitStack() as stack:
        reached = stack.enter_context(reaching_storage(config)) if serve else None
        command = stack.enter_context(Command(*manta("train", str(recipe), *as_options(overrides)), folder=folder))
        look_at_it = look(command)

        noted_at = time.monotonic()

        def look_around() -> None:
            nonlocal noted_at
            look_at_it()
            if reached is not None and time.monotonic() - noted_at >= SIGN_EVERY_S:
                noted_at = time.monotonic()
                _note_sign(reached, signs)

        command.wait(look_around)
    with reaching_storage(config) as config:
        run = open_run(config)
        rows = [json.loads(line) for line in metrics_lines(run.store)]
        return FinishedRun(summary_of_run(run), rows, [*signs, run.record.last], command.lines)


def _note_sign(config: RunConfig, signs: list[Attempt]) -> None:
    with suppress(MantaError):  # not begun yet
        sign = load_record(stores(config)[1]).last
        if not signs or sign.heartbeat_at > signs[-1].heartbeat_at:
            signs.append(sign)


# ---------------------------------------------------------------------------------------------------------------------
# Turns, medians, results
# ---------------------------------------------------------------------------------------------------------------------


def in_turn(rounds: int, contestants: Mapping[str, Callable[[], _T]]) -> dict[str, list[_T]]:
    """Each contestant's results, one a round; A B C A B C ..."""
    results: dict[str, list[_T]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            print(f"  round {number + 1} of {rounds}: {name}", flush=True)
            results[name].append(contestant())
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most, and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": [round(value, 6) for value in values],
    }


@dataclass
class Verdict:
    """A measure the project is judged by.

    Attributes:
        asked: the bound, as text.
        met: whether it was held this time, on this machine; None where it was not measured.
    """

    measure: str
    value: float
    unit: str
    asked: str
    met: bool | None

    @classmethod
    def at_least(cls, measure: str, value: float, bound: float, unit: str = "") -> Verdict:
        """More is better."""
        return cls(measure, value, unit, f">= {bound:g}", value >= bound)

    @classmethod
    def at_most(cls, measure: str, value: float, bound: float, unit: str = "") -> Verdict:
        """Less is better."""
        return cls(measure, value, unit, f"<= {bound:g}", value <= bound)

    @classmethod
    def told(cls, measure: str, value: float, unit: str = "") -> Verdict:
        """Only to be seen beside the others."""
        return cls(measure, value, unit, "", None)


_LOAD_BEFORE = os.getloadavg()


def report(name: str, settings: argparse.Namespace | Mapping[str, Any], verdicts: list[Verdict], details: Any) -> None:
    """Write bench/results/<name>.json and print the verdicts."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray", "tiktoken")},
        "load_before": _LOAD_BEFORE,
        "load_after": os.getloadavg(),
    }
    result = {
        "benchmark": name,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine,
        "settings": dict(settings if isinstance(settings, Mapping) else vars(settings)),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "details": details,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
    table = Table(title=name, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("asked", justify="right")
    table.add_column("")
    for verdict in verdicts:
        held = {True: "met", False: "NOT MET", None: ""}[verdict.met]
        table.add_row(verdict.measure, f"{_short(verdict.value)} {verdict.unit}".strip(), verdict.asked, held)
    Console(width=120).print(table)
    print(f"load {_LOAD_BEFORE[0]:.1f} before, {os.getloadavg()[0]:.1f} after; written to {path}", flush=True)


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.2e}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
