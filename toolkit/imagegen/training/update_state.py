"""The state of an update that resumes to the bit: LoRA, optimizer, loss scale, random states, round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from toolkit.errors import TrainingError
from toolkit.imagegen.generators.generator import BaseModel, Generator
from toolkit.imagegen.generators.lora import copy_lora, lora_parameters, restore_lora
from toolkit.models.random_state import RandomState

WEIGHT_DECAY = 1e-4
"""Of DDPO's reference implementation."""


@dataclass(slots=True, eq=False)
class UpdateState:
    """The state that changes while a generator is updated.

    Attributes:
        generator: the generator, whose LoRA is trained.
        optimizer: AdamW on the LoRA.
        scaler: loss scaling. It does nothing unless the precision is float16.
        round: the number of finished rounds.
    """

    generator: Generator
    optimizer: torch.optim.AdamW
    scaler: GradScaler
    round: int = 0


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Gradient norm before clipping, and whether the optimizer step was skipped because float16 overflowed."""

    gradient_norm: float
    skipped: bool


@dataclass(frozen=True, slots=True, eq=False)
class SavedUpdate:
    """An ``UpdateState`` as it is saved, with ``state_dict`` of optimizer and scaler."""

    base: BaseModel
    round: int
    lora: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    random: RandomState


def start_update(generator: Generator, learning_rate: float) -> UpdateState:
    """Return the state before the first round."""
    # By name: switching adapters changes which parameters require gradients.
    parameters = list(lora_parameters(generator.network).values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    scaler = GradScaler(generator.device.type, enabled=generator.precision == torch.float16)
    return UpdateState(generator, optimizer, scaler)


def optimizer_step(state: UpdateState, max_norm: float) -> StepOutcome:
    """Clip the accumulated gradients, update the LoRA, and clear the gradients.

    Raises:
        TrainingError: a gradient is not finite, without a loss scale that could be the cause.
    """
    state.scaler.unscale_(state.optimizer)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
    finite = norm < float("inf")  # False for NaN, too.
    if not finite and not state.scaler.is_enabled():
        raise TrainingError(
            "imagegen.gradients_not_finite",
            "gradients must be finite",
            place=f"round {state.round + 1}",
            value=norm,
            remedy="Lower the learning rate, or set imagegen.generator.precision to float32.",
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return StepOutcome(norm, skipped=not finite)


def dump_state(state: UpdateState) -> SavedUpdate:
    """Return the state as it is saved in a checkpoint."""
    return SavedUpdate(
        base=state.generator.base,
        round=state.round,
        lora=copy_lora(state.generator.network),
        optimizer=state.optimizer.state_dict(),
        scaler=state.scaler.state_dict(),
        random=RandomState.now(),
    )


def restore_state(state: UpdateState, saved: SavedUpdate, file: Path) -> None:
    """Continue from what ``dump_state`` returned.

    Args:
        state: the state, which is changed.
        saved: the saved state.
        file: the file that it was loaded from, for the error.

    Raises:
        TrainingError: it belongs to another base.
    """
    if saved.base.sha256 != state.generator.base.sha256:
        raise TrainingError(
            "imagegen.checkpoint_base_differs",
            f"a checkpoint must belong to the base of the recipe ({state.generator.base.name})",
            place=file,
            value=saved.base.name,
            remedy="Restore the base that the run began with, or start a new run.",
        )
    restore_lora(state.generator.network, saved.lora)
    state.optimizer.load_state_dict(saved.optimizer)
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(saved.scaler)
    saved.random.restore()
    state.round = saved.round
