"""Training with little simulated GPU memory."""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training import context_of, only
from toolkit.models.hf import HfBackend
from toolkit.recipe import Recipe
from toolkit.runfolder import read_lines
from toolkit.training.grpo import train_grpo
from toolkit.training.results import GrpoResult, SftResult
from toolkit.training.sft import train_sft

BY_UNSLOTH = os.environ.get("TOOLKIT_TEST_BACKEND") == "unsloth"


TRAIN: Mapping[str, Callable[..., SftResult | GrpoResult]] = {"sft": train_sft, "grpo": train_grpo}


@dataclass
class SmallMemory:
    """Raises an out-of-memory error for passes with too many rows. ``seen``: the rows of each pass.

    With ``tokens``, passes are measured by their tokens instead: the longest row times the rows.
    """

    fits: int
    where: str = "forward"
    gradients: bool | None = None
    """True: passes with gradients only; False: those without only."""
    tokens: bool = False
    spared: int = 0
    """The number of passes that succeed although they would not fit."""
    seen: list[int] = field(default_factory=list)
    raised: int = 0
    models: list[Any] = field(default_factory=list)
    """A weak reference to each model that was loaded."""

    def __call__(self, module: torch.nn.Module, args: Any, fields: Mapping[str, Any], output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if self.gradients is not None and self.gradients != torch.is_grad_enabled():
            return
        size = hidden.shape[:-1].numel() if self.tokens else len(hidden)
        self.seen.append(size)
        if size <= self.fits:
            return
        if self.spared:
            self.spared -= 1
        elif self.where == "forward":
            self.fail()
        else:
            hidden.register_hook(self.fail)

    def fail(self, *_: Any) -> None:
        self.raised += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than fits (injected).")

    def put_into(self, model: Any) -> Any:
        """Forward: after the decoder. Backward: after its first layer, when those above have their gradients."""
        decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
        place = decoder if self.where == "forward" else decoder.layers[0]
        return place.register_forward_hook(self, with_kwargs=True)


def backend_class() -> Any:
    """The backend that is tested."""
    if BY_UNSLOTH:
        from toolkit.models.unsloth.backend import UnslothBackend

        return UnslothBackend
    return HfBackend


@contextmanager
def small_memory(patch: pytest.MonkeyPatch, **how: Any) -> Iterator[SmallMemory]:
    """Give loaded models little GPU memory, and check that only one of them exists at a time."""
    backend = backend_class()
    memory, load = SmallMemory(**how), backend.load

    def loaded(self: Any, *args: Any, **options: Any) -> Any:
        assert not any(model() for model in memory.models), "two models would not fit the GPU"
        policy = load(self, *args, **options)
        memory.put_into(policy.model)
        memory.models.append(weakref.ref(policy.model))
        return policy

    with patch.context() as inner:
        inner.setattr(backend, "load", loaded)
        yield memory


def run(recipe: Recipe, stage: str, **options: Any) -> SftResult | GrpoResult:
    with context_of(recipe) as context:
        return TRAIN[stage](context, **{"preflight": False, **options})


def lines_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the lines of steps in metrics.jsonl, without values that depend on time."""
    lines = [line for line in read_lines(recipe.run_folder / "metrics.jsonl") if "loss" in line]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def recipe_of(stage: str, folder: Path, name: str, **tables: Mapping[str, Any]) -> Recipe:
    """Steps of 4 rows or completions in two passes of 2, with dropout; checkpoints are written only at stops.

    Prompts are not packed, because memory is measured in rows (tests/test_packing.py measures it in tokens).
    """
    base: dict[str, dict[str, Any]] = {
        "run": {"checkpoint_steps": 100},
        "sft": {"max_steps": 2, "batch_size": 2, "accumulation": 2},
        "grpo": {"max_steps": 2, "generations": 2, "micro_batch": 2, "packing": False, "max_completion_tokens": 8},
    }
    if BY_UNSLOTH:
        base["model"] = {"backend": "unsloth", "precision": "4bit", "max_tokens": 600}
    for table, keys in tables.items():
        base[table] = {**base.get(table, {}), **keys}
    return only(stage, folder, name, base)
