"""The CORN loss against a loop over rows and logits, and against figures known in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.imagegen.scorers.heads import corn_exceedance, corn_loss


def brute_force(logits: list[list[float]], levels: list[int], weights: list[float]) -> float:
    total = weight_sum = 0.0
    for row, level, weight in zip(logits, levels, weights, strict=True):
        for k, logit in enumerate(row):
            if level >= k:
                probability = 1 / (1 + math.exp(-logit))
                total += -weight * math.log(probability if level > k else 1 - probability)
                weight_sum += weight
    return total / weight_sum


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 20))
def test_the_loss_equals_a_loop_over_rows_and_logits(seed: int, n_levels: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n_levels - 1, generator=generator, dtype=torch.float64)
    levels = torch.randint(0, n_levels, (n,), generator=generator)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.01
    expected = brute_force(logits.tolist(), levels.tolist(), weights.tolist())
    assert corn_loss(logits, levels, weights).item() == pytest.approx(expected, abs=1e-8)
    unweighted = brute_force(logits.tolist(), levels.tolist(), [1.0] * n)
    assert corn_loss(logits, levels).item() == pytest.approx(unweighted, abs=1e-8)


def test_integer_weights_equal_repeated_rows_in_loss_and_gradient() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels, weights = torch.tensor([0, 1, 2, 3, 3, 0, 1]), torch.tensor([1, 2, 3, 1, 2, 4, 0])
    rows = torch.repeat_interleave(torch.arange(7), weights)
    once, repeated = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, by_rows = corn_loss(once, levels, weights), corn_loss(repeated[rows], levels[rows])
    loss.backward()
    by_rows.backward()
    assert loss.item() == pytest.approx(by_rows.item(), abs=1e-12)
    torch.testing.assert_close(once.grad, repeated.grad, rtol=0, atol=1e-12)


def test_without_features_the_logits_learn_the_fractions_of_the_levels() -> None:
    levels = torch.tensor([0] * 20 + [1] * 40 + [2] * 40)
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = corn_loss(logits.expand(100, 2), levels)
        loss.backward()
        return loss

    optimizer.step(closure)
    # 80 of 100 rows are above level 0, and 40 of these 80 above level 1.
    assert torch.sigmoid(logits)[0].tolist() == pytest.approx([0.8, 0.5], abs=1e-6)
    assert corn_exceedance(logits).mean(dim=-1).item() == pytest.approx((levels / 2).mean().item(), abs=1e-6)


def test_a_weight_changes_the_loss_and_not_the_label() -> None:
    logits = torch.tensor([[2.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    levels = torch.tensor([0, 2])
    plain, weighted = corn_loss(logits, levels), corn_loss(logits, levels, torch.tensor([3.0, 1.0]))
    assert weighted.item() != pytest.approx(plain.item(), abs=1e-3)
    # Whatever its weight, a row of the lowest level pulls its first logit down and a row of the highest level up.
    for weight in (1 / 3, 1.0, 3.0):
        free = logits.clone().requires_grad_()
        corn_loss(free, levels, torch.tensor([weight, weight])).backward()
        assert free.grad is not None
        assert free.grad[0, 0] > 0
        assert free.grad[0, 1] == 0
        assert (free.grad[1] < 0).all()


def test_scores_are_the_expected_rank_and_exceedance_never_increases() -> None:
    logits = 4 * torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    exceedance = corn_exceedance(logits)
    assert (exceedance.diff(dim=-1) <= 0).all()
    probabilities = torch.cat([torch.ones(3, 50, 1), exceedance], dim=-1) - torch.cat(
        [exceedance, torch.zeros(3, 50, 1)], dim=-1
    )
    expected = (probabilities * torch.arange(5) / 4).sum(dim=-1)
    torch.testing.assert_close(corn_exceedance(logits).mean(dim=-1), expected)
    assert ((corn_exceedance(logits).mean(dim=-1) >= 0) & (corn_exceedance(logits).mean(dim=-1) <= 1)).all()


def test_extreme_logits_give_finite_losses() -> None:
    loss = corn_loss(torch.tensor([[200.0, -200.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("levels", "weights"),
    [
        ([0, 3], [1.0, 1.0]),
        ([-1, 0], [1.0, 1.0]),
        ([0.0, 1.0], [1.0, 1.0]),
        ([0], [1.0, 1.0]),
        ([0, 1], [1.0, -1.0]),
        ([0, 1], [0.0, 0.0]),
        ([0, 1], [1.0, math.nan]),
    ],
)
def test_levels_and_weights_that_do_not_fit_are_rejected(levels: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError):
        corn_loss(torch.zeros(2, 2), torch.tensor(levels), torch.tensor(weights))
