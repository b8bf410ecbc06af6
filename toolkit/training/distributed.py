"""Synchronisation of several training processes. With one process, nothing happens."""

from datetime import timedelta

import torch
from accelerate import PartialState

from toolkit.runfolder import world_size

TIMEOUT = timedelta(days=3)
"""How long the other processes wait while the first one evaluates alone, which can take hours."""


def wait_for_all() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        _state().wait_for_everyone()


def max_over_processes(number: int) -> int:
    """Return the maximum of ``number`` over all processes."""
    if world_size() == 1:
        return number
    result = torch.tensor(number, device=_state().device)
    torch.distributed.all_reduce(result, op=torch.distributed.ReduceOp.MAX)
    return int(result)


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
