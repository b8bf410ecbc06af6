"""GRPO of a few steps with some of the savings of repeated work: completions, gradients, parameters, and work done.

In each group, rewards depend on the place of a completion. In one group of three, they are equal.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.helpers.training import Tables, context_of, small_recipe
from toolkit.models.backend import Completion, RewardScorer, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.packing import packed_sizes
from toolkit.models.prompts import Prompts
from toolkit.training.grpo import build_grpo

PROMPTS, GENERATIONS = 3, 3
CACHE, PREFILL, PACKING, SKIPPING = SAVINGS = ("vision_cache", "shared_prefill", "packing", "skipping")
ALL = frozenset(SAVINGS)
NONE: frozenset[str] = frozenset()
FAMILIES = ("gemma3", "qwen2_5_vl", "qwen3_vl")
"""Model types that can be packed."""
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """How to train.

    Attributes:
        savings: The savings that are on.
        dtype: The dtype of the model.
        micro_batch: Completions of a pass without packing.
        multiple: Prompts and completions are padded to a multiple of these tokens. None: to the longest one.
    """

    savings: frozenset[str] = NONE
    dtype: torch.dtype = torch.float32
    micro_batch: int = 1
    multiple: int | None = None


@dataclass
class Found(TrainerCallback):
    """The completions, gradients and trained parameters of each optimizer step, and the work that was done.

    Attributes:
        completions: Token ids of the N completions of each rollout.
        greedy: Token ids of N greedy completions of the same prompts, by the same policy.
        images: Distinct images of each rollout, in all.
        encoded: Images that passed through the vision tower.
        prefilled: Rows of prompts that ``generate`` computed.
        trained: Tokens of the forward passes with gradients.
    """

    completions: list[list[list[int]]] = field(default_factory=list)
    greedy: list[list[list[int]]] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    parameters: list[dict[str, torch.Tensor]] = field(default_factory=list)
    images: int = 0
    encoded: int = 0
    prefilled: int = 0
    trained: int = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.parameters.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def score(
    numbers: Sequence[int], completions: Sequence[Completion]
) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
    groups = [divmod(place, GENERATIONS) for place in range(len(completions))]
    return [{"place": 0.5 if group % 3 == 1 else (place * 2 % 5) / 5} for group, place in groups], {}


def watch(trainer: Any, found: Found) -> None:
    """Record the completions of ``trainer``, and count its work."""
    generate, model = trainer._generate_single_turn, trainer.model.get_base_model()

    def recorded(*args: Any, **options: Any) -> Any:
        found.images += len({image.tobytes() for own in args[1] for image in own})
        trainer.generation_config.do_sample = False
        found.greedy.append([list(one) for one in generate(*args, **options)[0]])
        trainer.generation_config.do_sample = True
        ids, more = generate(*args, **options)
        found.completions.append([list(one) for one in ids])
        return ids, more

    def language(module: Any, args: Any, output: Any) -> None:
        rows, length = output[0].shape[:2]
        if torch.is_grad_enabled():
            found.trained += rows * length
        elif length > 1:
            found.prefilled += rows

    trainer._generate_single_turn = recorded
    model.get_decoder().register_forward_hook(language)
    trainer.add_callback(found)


def switch_off(trainer: Any, model: Any, savings: Collection[str]) -> None:
    """Switch off all but some ``savings``. Packing is the recipe's."""
    if CACHE not in savings and trainer.vision_cache is not None:
        trainer.vision_cache.remove()
        trainer.vision_cache = None
    if PREFILL not in savings:
        model.get_base_model().forward.shared_prefill.remove()
    if SKIPPING not in savings:
        trainer.skip_zero_variance = False


def train(folder: Path, model: Path, way: Way, steps: int) -> Found:
    """Train a model. Return what each step had."""
    settings = {
        "max_steps": steps,
        "prompts_per_step": PROMPTS,
        "generations": GENERATIONS,
        "micro_batch": way.micro_batch,
        "max_completion_tokens": 8,
        "learning_rate": 1e-3,
    }
    tables: Tables = {
        "model": {"name": str(model), "max_tokens": 600},
        "lora": {"dropout": 0.0},
        "images": {"max_side": 56},
        "grpo": settings,
    }
    found = Found()
    with context_of(small_recipe(folder, tables)) as context:
        recipe, backend = context.recipe, HfBackend()
        policy = backend.load(recipe, None, trainable=True)
        policy.model.to(way.dtype)
        rows = Prompts.of(recipe, context.images).rows(context.data.train)
        job = TrainingJob(recipe, rows, len(context.data.train), folder, scorer=RewardScorer({"place": 1.0}, score))
        if PACKING in way.savings:
            job = replace(job, packing=True, sizes=packed_sizes(recipe))
        trainer = build_grpo(backend, policy, job)
        trainer.pad_to_multiple_of = way.multiple
        cache = trainer.vision_cache
        switch_off(trainer, policy.model, way.savings)
        watch(trainer, found)
        trainer.train()
        found.encoded = cache.computed
    return found


def difference(found: Tensors, expected: Tensors) -> tuple[float, float]:
    """Return the largest difference relative to the largest entry, and the L2 norm of all relative to theirs."""
    assert found.keys() == expected.keys()
    parts = {name: (found[name] - value, value) for name, value in expected.items()}
    furthest, largest = (max(float(pair[side].abs().max()) for pair in parts.values()) for side in (0, 1))
    squares = [sum(float(pair[side].double().square().sum()) for pair in parts.values()) for side in (0, 1)]
    assert largest > 0
    return furthest / largest, (squares[0] / squares[1]) ** 0.5
