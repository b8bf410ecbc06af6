"""Several processes that train one model: where they wait, and what they agree on. Alone, nothing happens."""

from datetime import timedelta

import torch
from accelerate import PartialState

from toolkit.runfolder import world_size

TIMEOUT = timedelta(days=3)
"""The first process evaluates alone, for hours where questions are many; the others wait for it that long."""


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        _state().wait_for_everyone()


def max_over_processes(number: int) -> int:
    """The largest of the numbers that the processes bring."""
    if world_size() == 1:
        return number
    brought = torch.tensor(number, device=_state().device)
    torch.distributed.all_reduce(brought, op=torch.distributed.ReduceOp.MAX)
    return int(brought)


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
