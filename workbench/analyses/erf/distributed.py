"""Processes that share the images of a field, started by `torchrun`; one process needs none of
this.

They meet over gloo, on GPUs too: what they exchange are sums of maps, once a run and a few times
for its convergence.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from models.training import distributed as training


class Group:
    """This process among those of one `torchrun`; `local_rank` counts within its machine."""

    def __init__(self, processes: training.Processes) -> None:
        self._processes = processes
        self.rank = processes.rank
        self.world = processes.world
        self.local_rank = processes.local_rank

    def sum(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """New arrays: the sums over all processes, in each array's own type.

        Every process must call it with the same keys and shapes.
        """
        sums = {}
        for name, array in arrays.items():
            tensor = torch.from_numpy(np.array(array))  # a copy: the caller's own stays
            dist.all_reduce(tensor)
            sums[name] = tensor.numpy()
        return sums


def join() -> Group | None:
    """Meets the other processes if `torchrun` started more than this one; None without."""
    processes = training.join("cpu")
    return None if processes.world == 1 else Group(processes)


def leave(group: Group | None) -> None:
    """Ends the meeting; nothing can be summed after it."""
    if group is not None:
        training.leave(group._processes)
