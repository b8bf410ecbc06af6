"""Several training processes: synchronisation, and the part of a step for each. With one process, nothing happens."""

from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from toolkit.errors import TrainingError
from toolkit.runfolder import world_size

Value = TypeVar("Value")
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


def from_main(value: Value) -> Value:
    """Return the value of the first process in every process."""
    if world_size() == 1:
        return value
    _state()
    values: list[Any] = [value]
    broadcast_object_list(values)
    return values[0]  # type: ignore[no-any-return]


def per_process(count: int, place: str) -> int:
    """Return the part of a step's ``count`` for each process. An optimizer step is the same with any number of them.

    Raises:
        TrainingError: ``count`` is not a multiple of the number of processes.
    """
    if count % world_size():
        raise TrainingError(
            "training.step_not_divisible",
            f"must be a multiple of the {world_size()} processes",
            place=place,
            value=count,
            remedy=f"Choose a multiple of {world_size()}, or start fewer processes.",
        )
    return count // world_size()


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
