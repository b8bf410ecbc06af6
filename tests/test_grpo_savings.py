"""Rollouts, gradients and parameters of GRPO with and without each saving of repeated work, on three families.

Before each rollout, the same prompts have greedy completions too. In one group of three, rewards are equal.

Vision cache and shared prefill change no bit. Packed prompts change the last bits of gradients, and Adam divides by
their size: an entry that is zero up to rounding can move its parameter by a whole learning rate. In float32, the
rollouts after an update with packed prompts can therefore differ. They are compared in float64.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.grpo_steps import (
    ALL,
    CACHE,
    FAMILIES,
    NONE,
    PACKING,
    PREFILL,
    PROMPTS,
    SKIPPING,
    Found,
    Tensors,
    Way,
    difference,
    train,
)
from tests.helpers.tiny_families import build_tiny
from toolkit.tiny import FOLDER

STEPS = 3
Trained = Callable[..., Found]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return ``train`` for one family. Equal trainings are done once."""
    folder = tmp_path_factory.mktemp(request.param)
    model = Path(FOLDER) if request.param == "gemma3" else build_tiny(request.param, folder)

    @functools.cache
    def once(savings: frozenset[str], dtype: torch.dtype = torch.float32) -> Found:
        name = f"{'-'.join(sorted(savings))}-{dtype}".replace(" ", "")
        return train(folder / name, model, Way(savings, dtype), STEPS)

    return once


def differences(found: Sequence[Tensors], expected: Sequence[Tensors]) -> float:
    """Return the largest difference of a tensor in any step, relative to the largest entry of the step."""
    assert len(found) == len(expected) == STEPS
    return max(difference(own, other)[0] for own, other in zip(found, expected, strict=True))


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
def test_float32_gradients_of_packed_prompts_are_as_exact_as_those_of_unpacked_ones(trained: Trained) -> None:
    """A row of float32 has rounding errors of its own, so packing cannot agree with it better (bench_rounding.py)."""
    exact = trained(NONE, torch.float64).gradients[0]
    plain, packed = (trained(savings).gradients[0] for savings in (NONE, frozenset({PACKING})))
    for rounding, own, between in zip(
        difference(plain, exact), difference(packed, exact), difference(packed, plain), strict=True
    ):
        assert own <= 2 * rounding
        assert between <= 2 * rounding


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
