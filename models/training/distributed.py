"""Several processes on one job, started by `torchrun`; a single process needs none of this."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True everywhere if `flag` is set in one process, so that all leave at the same step."""
        if self.world == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        seen = torch.tensor(int(flag), device=device)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in rank order, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites the tensors of every process by those of the first."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def join(device_type: str) -> Processes:
    """Joins the other processes if torchrun started this one: NCCL on GPUs, gloo on CPUs."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    backend = "nccl" if device_type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend)
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))


def leave(processes: Processes) -> None:
    if processes.world > 1:
        dist.destroy_process_group()
