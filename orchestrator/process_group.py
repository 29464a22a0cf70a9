"""The torch process group of a worker group, as a Ray Train backend.

Ray's own `TorchConfig` does the same, but importing it imports torch, on which both the driver and the controller
would spend seconds at every start for nothing. This one imports torch in the workers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig

from data.ray_internals import address_and_port


@dataclass
class ProcessGroupConfig(BackendConfig):
    """NCCL among GPU workers, Gloo among CPU workers.

    Attributes:
        timeout_s: seconds after which a collective that does not end is an error.
    """

    use_gpu: bool = False
    timeout_s: float = 1800.0

    @property
    def backend_cls(self) -> type[Backend]:
        """The class Ray Train calls."""
        return ProcessGroup


class ProcessGroup(Backend):
    """Joins all workers of a group into one process group when it starts, and takes it apart at the end."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called by the controller once the workers are up."""
        import ray

        assert isinstance(backend_config, ProcessGroupConfig)
        address, port = worker_group.execute_single(0, address_and_port)
        world_size = len(worker_group)
        backend = "nccl" if backend_config.use_gpu else "gloo"
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend, f"tcp://{address}:{port}", rank, world_size, backend_config.timeout_s
                )
                for rank in range(world_size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called by the controller before the workers end; some may be gone already."""
        worker_group.execute_async(_leave)


def _join(backend: str, init_method: str, rank: int, world_size: int, timeout_s: float) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
