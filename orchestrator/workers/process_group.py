"""The torch process group of a worker group, as a Ray Train backend; joining and leaving it.

Ray's own `TorchConfig` does the same, but importing it imports torch, which would cost the driver and the controller
seconds at every start. This one imports torch in the workers alone.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig

from cluster.ray_nodes import address_and_port

TIMEOUT_S = 1800.0
"""Seconds after which a collective fails; workers that hang are found earlier, see `orchestrator/policy`."""


@dataclass
class ProcessGroupConfig(BackendConfig):
    """NCCL among GPU workers, Gloo among CPU workers.

    Attributes:
        timeout_s: seconds after which a collective fails that has not completed.
    """

    use_gpu: bool = False
    timeout_s: float = TIMEOUT_S

    @property
    def backend_cls(self) -> type[Backend]:
        """The class Ray Train calls."""
        return ProcessGroup


class ProcessGroup(Backend):
    """Joins all workers of a group into one process group; each leaves it with `leave_group`."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called by the controller when the workers are up."""
        import ray

        assert isinstance(backend_config, ProcessGroupConfig)
        address, port = worker_group.execute_single(0, address_and_port)
        world_size = len(worker_group)
        backend = "nccl" if backend_config.use_gpu else "gloo"
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join_group, backend, f"tcp://{address}:{port}", rank, world_size, backend_config.timeout_s
                )
                for rank in range(world_size)
            ]
        )


_gloo_ports: set[int] = set()
"""Ports on which the ranks of this process's group listen for their peers; empty without Gloo."""


def join_group(backend: str, init_method: str, rank: int, world_size: int, timeout_s: float) -> None:
    """Joins this process to a group as `rank`; returns when all ranks have joined.

    Raises:
        torch.distributed.DistError: not all ranks joined within `timeout_s`.
    """
    from datetime import timedelta

    import torch.distributed as dist

    before = set(_listening_ports())
    try:
        dist.init_process_group(
            backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
        )
    except BaseException:
        # Ranks meet under the number of groups so far. This one counts here, and not in the processes that come next.
        dist.distributed_c10d._world.group_count = 0
        raise
    _gloo_ports.clear()
    if backend == "gloo":
        ports_by_rank: list[list[int]] = [[]] * world_size
        dist.all_gather_object(ports_by_rank, sorted(set(_listening_ports()) - before))
        _gloo_ports.update(port for ports in ports_by_rank for port in ports)


def leave_group() -> None:
    """Takes this process out of its group, so that every rank that waits for it fails at once instead of at a timeout.

    DDP holds references that keep the group and its connections open after `destroy_process_group`: a rank waiting for
    a peer that waits for a dead one would keep waiting. So the connections are shut down here, which also ends pending
    collectives of this process.
    """
    import torch.distributed as dist

    for connection in _sockets():
        with connection, suppress(OSError):
            if {connection.getsockname()[1], connection.getpeername()[1]} & _gloo_ports:
                connection.shutdown(socket.SHUT_RDWR)
    _gloo_ports.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _listening_ports() -> Iterator[int]:
    for each in _sockets():
        with each:
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield each.getsockname()[1]


def _sockets() -> Iterator[socket.socket]:
    """This process's TCP sockets, each duplicated, for the caller to close."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # closed in the meantime
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(int(name)))
            if duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM:
                yield duplicate
            else:
                duplicate.close()
