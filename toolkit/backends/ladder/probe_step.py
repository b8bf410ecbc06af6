"""A step that changes nothing, made first, on the longest rows: what does not fit is found in the first minute."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from toolkit.backends.ladder.at_once import free
from toolkit.backends.ladder.random_state import RandomState
from toolkit.compute import begin_peak, gpu_peaks
from toolkit.run import Record, world_size

log = logging.getLogger(__name__)

_LOGGED = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")
_COUNTED = ("_step", "_buffered_inputs", "_total_train_tokens", "_current_train_step_time")
BLOCK = 256
"""Values for which bitsandbytes' 8-bit optimisers keep one number more, and from 4096 of which on they use 8 bits."""


def probe_step(trainer: Any, model: Any, rows: Sequence[int]) -> Record | None:
    """One forward and backward pass on the first of ``rows``, beside as many bytes as the optimiser's state will take.

    For GRPO the prompts of a step are answered first, with completions that are as long as can be; nobody judges them.
    What has to be halved stays so. All else is as it was: weights, gradients, random state, order of the rows, figures.

    Args:
        trainer: a Ladder that has begun to train.
        model: as the trainer's ``training_step`` gets it.
        rows: numbers of rows, the longest first.

    Returns:
        rows, seconds, the peak of the GPU's memory in bytes (None without a GPU), and how often memory was too small;
        None where several processes train, whose passes must not differ.

    Raises:
        TrainingError: one row does not fit.
    """
    if world_size() > 1:
        log.info("no probe step: several processes train")
        return None
    begin_peak()
    begun, errors = time.monotonic(), trainer.errors
    with _as_it_was(trainer, model), _room_for_state(trainer), trainer.as_long_as_can_be():
        batch, used = trainer.longest_batch(rows)
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.begin_step()
        trainer.make_pass(model, batch, items)
    found = {
        "rows": used,
        "seconds": round(time.monotonic() - begun, 1),
        **gpu_peaks(),
        "out_of_memory": trainer.errors - errors,
        "micro_batch": trainer.passes.of(trainer.args.per_device_train_batch_size),
    }
    free()
    log.info("probe step: %s", _describe(found))
    return found


def state_bytes(optimizer: str, sizes: Sequence[tuple[int, int]]) -> int:
    """What AdamW's two moments will take on the GPU, for parameters given as (values, bytes a value).

    Paged state can leave the GPU, and counts nothing.
    """
    if optimizer.startswith("paged"):
        return 0
    if "8bit" in optimizer:
        return sum(2 * (count + count // BLOCK * 4) if count >= 4096 else 8 * count for count, _ in sizes)
    return sum(2 * count * width for count, width in sizes)


@contextmanager
def _as_it_was(trainer: Any, model: Any) -> Iterator[None]:
    logged = {name: copy.deepcopy(getattr(trainer, name)) for name in _LOGGED if hasattr(trainer, name)}
    counted = {name: getattr(trainer, name) for name in _COUNTED if hasattr(trainer, name)}
    seen, random = trainer.state.num_input_tokens_seen, RandomState.now()
    first_pass = trainer.__dict__.pop("compute_loss", None)  # torch's count of one pass is for a pass that trains
    try:
        yield
    finally:
        model.zero_grad()
        random.restore()
        trainer.state.num_input_tokens_seen = seen
        for name, value in (logged | counted).items():
            setattr(trainer, name, value)
        if first_pass is not None:
            trainer.compute_loss = first_pass
        trainer.begin_step()


@contextmanager
def _room_for_state(trainer: Any) -> Iterator[None]:
    """As many bytes as the state will take, unless a resumed run has it already."""
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    known = bool(getattr(trainer.optimizer, "state", None))
    size = 0 if known else state_bytes(str(trainer.args.optim), [(one.numel(), one.element_size()) for one in trained])
    room = torch.empty(size, dtype=torch.uint8, device=trainer.args.device)
    yield
    del room


def _describe(found: Record) -> str:
    peak = found["peak_reserved_bytes"]
    memory = "" if peak is None else f", at most {peak / 2**30:.2f} GiB of the GPU reserved"
    less = f", out of memory {found['out_of_memory']} times" if found["out_of_memory"] else ""
    how = f"{found['rows']} longest rows in {found['seconds']} s"
    return f"{how}{memory}{less}; {found['micro_batch']} rows at once in a pass"
