"""Memory of the processes of a command, by Linux's /proc."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.processes import Command


@dataclass
class Memory:
    """Resident memory of a process, in bytes.

    Attributes:
        peak: maximum since the start, of all kinds (VmHWM).
        private: heap and stacks at the moment (RssAnon).
        files: mapped libraries (RssFile).
        shared: mapped shared memory (RssShmem).
    """

    peak: int = 0
    private: int = 0
    files: int = 0
    shared: int = 0

    @classmethod
    def of(cls, pid: int) -> Memory | None:
        """Memory of a process; None if it has ended."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
        if "VmHWM" not in kib:
            return None
        return cls(*(kib[name] * 1024 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")))


class MemoryWatch:
    """Maximum memory of the processes of a command, by role.

    Args:
        command: the command.
        roles: part of a process's title, by the role's name.

    Attributes:
        seen: by role and pid, the maximum of each kind of memory.
    """

    def __init__(self, command: Command, roles: Mapping[str, str]) -> None:
        self._command, self._roles = command, roles
        self.seen: dict[str, dict[int, Memory]] = {role: {} for role in roles}

    def observe(self) -> None:
        """Reads the memory of all processes once."""
        for pid, title in self._command.processes().items():
            for role, part in self._roles.items():
                if part in title and (memory := Memory.of(pid)):
                    before = self.seen[role].get(pid, Memory())
                    self.seen[role][pid] = Memory(
                        *(max(old, new) for old, new in zip(_values(before), _values(memory), strict=True))
                    )


def _values(memory: Memory) -> tuple[int, ...]:
    return memory.peak, memory.private, memory.files, memory.shared
