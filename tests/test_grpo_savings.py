"""Rollouts, gradients and parameters of GRPO with and without each saving of repeated work, on three families.

Before each rollout, the same prompts have greedy completions too. In one group of three, rewards are equal.

Vision cache and shared prefill change no bit. Packed prompts change the last bits of gradients, and Adam divides by
their size: an entry that is zero up to rounding can move its parameter by a whole learning rate. In float32, the
rollouts after an update with packed prompts can therefore differ. They are compared in float64.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.helpers.tiny_families import build_tiny
from tests.helpers.training import context_of, small_recipe
from toolkit.models.backend import Completion, Policy, RewardScorer, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.packing import packed_sizes
from toolkit.models.prompts import Prompts
from toolkit.tiny import FOLDER
from toolkit.training.grpo import build_grpo

STEPS, PROMPTS, GENERATIONS = 3, 3, 3
LEARNING_RATE = 1e-3
CACHE, PREFILL, PACKING, SKIPPING = "vision cache", "shared prefill", "packing", "skipping"
ALL = frozenset({CACHE, PREFILL, PACKING, SKIPPING})
NONE: frozenset[str] = frozenset()
FAMILIES = ("gemma3", "qwen2_5_vl", "qwen3_vl")


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


def switch_off(trainer: Any, policy: Policy, savings: frozenset[str]) -> None:
    if CACHE not in savings:
        trainer.vision_cache.remove()
        trainer.vision_cache = None
    if PREFILL not in savings:
        policy.model.get_base_model().forward.shared_prefill.remove()
    if SKIPPING not in savings:
        trainer.skip_zero_variance = False


def train(folder: Path, model: Path, savings: frozenset[str], dtype: torch.dtype) -> Found:
    """Train a model with some of the savings. Return what each step had."""
    settings = {
        "max_steps": STEPS,
        "prompts_per_step": PROMPTS,
        "generations": GENERATIONS,
        "micro_batch": 1,
        "max_completion_tokens": 8,
        "learning_rate": LEARNING_RATE,
    }
    tables = {
        "model": {"name": str(model), "max_tokens": 600},
        "lora": {"dropout": 0.0},
        "images": {"max_side": 56},
        "grpo": settings,
    }
    found = Found()
    with context_of(small_recipe(folder, tables)) as context:
        recipe, backend = context.recipe, HfBackend()
        policy = backend.load(recipe, None, trainable=True)
        policy.model.to(dtype)
        rows = Prompts.of(recipe, context.images).rows(context.data.train)
        job = TrainingJob(recipe, rows, len(context.data.train), folder, scorer=RewardScorer({"place": 1.0}, score))
        if PACKING in savings:
            job = replace(job, packing=True, sizes=packed_sizes(recipe))
        trainer = build_grpo(backend, policy, job)
        cache = trainer.vision_cache
        switch_off(trainer, policy, savings)
        watch(trainer, found)
        trainer.train()
        found.encoded = cache.computed
    return found


Trained = Callable[..., Found]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return ``train`` for one family. Equal trainings are done once."""
    folder = tmp_path_factory.mktemp(request.param)
    model = Path(FOLDER) if request.param == "gemma3" else build_tiny(request.param, folder)

    @functools.cache
    def once(savings: frozenset[str], dtype: torch.dtype = torch.float32) -> Found:
        name = f"{'-'.join(sorted(savings))}-{dtype}".replace(" ", "")
        return train(folder / name, model, savings, dtype)

    return once


def differences(found: Sequence[Mapping[str, torch.Tensor]], expected: Sequence[Mapping[str, torch.Tensor]]) -> float:
    """Return the largest difference of a tensor in any step, relative to the largest entry of the step."""
    assert len(found) == len(expected) == STEPS
    largest = []
    for own, other in zip(found, expected, strict=True):
        assert own.keys() == other.keys()
        scale = max(float(tensor.abs().max()) for tensor in other.values())
        assert scale > 0
        largest.append(max(float((own[name] - other[name]).abs().max()) for name in other) / scale)
    return max(largest)


@pytest.mark.slow
@pytest.mark.parametrize("saving", [CACHE, PREFILL])
def test_completions_gradients_and_parameters_of_every_step_are_equal_to_the_last_bit(
    trained: Trained, saving: str
) -> None:
    expected, found = trained(NONE), trained(frozenset({saving}))
    assert (found.completions, found.greedy) == (expected.completions, expected.greedy)
    assert differences(found.gradients, expected.gradients) == 0
    assert differences(found.parameters, expected.parameters) == 0


UPDATES = pytest.mark.parametrize(
    "savings", [frozenset({PACKING}), frozenset({SKIPPING}), ALL], ids=["packing", "skipping", "all"]
)


@pytest.mark.slow
@UPDATES
def test_completions_of_every_step_are_equal_in_float64(trained: Trained, savings: frozenset[str]) -> None:
    expected, found = trained(NONE, torch.float64), trained(savings, torch.float64)
    assert (found.completions, found.greedy) == (expected.completions, expected.greedy)
    assert differences(found.gradients, expected.gradients) <= 1e-6


@pytest.mark.slow
@UPDATES
def test_completions_before_the_first_update_are_equal_in_float32(trained: Trained, savings: frozenset[str]) -> None:
    expected, found = trained(NONE), trained(savings)
    assert (found.completions[0], found.greedy[0]) == (expected.completions[0], expected.greedy[0])


@pytest.mark.slow
def test_the_compared_rollouts_differ_between_completions_and_steps(trained: Trained) -> None:
    """Otherwise, equal completions would say little."""
    found = trained(NONE)
    assert len(found.completions) == len(found.greedy) == STEPS
    for sampled, greedy in zip(found.completions, found.greedy, strict=True):
        assert len({tuple(ids) for ids in sampled}) > PROMPTS
        assert len({tuple(ids) for ids in greedy}) <= PROMPTS
    assert found.greedy[0] != found.greedy[-1]


@pytest.mark.slow
def test_each_saving_does_less_work(trained: Trained) -> None:
    whole = trained(NONE)
    for savings in (frozenset({CACHE}), ALL):
        assert trained(savings).encoded == whole.images + 1  # the check before the first update changes one image
    assert trained(frozenset({PREFILL})).prefilled < whole.prefilled
    assert trained(frozenset({PACKING})).trained < whole.trained
    assert trained(frozenset({SKIPPING})).trained < whole.trained
