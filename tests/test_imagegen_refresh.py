"""Refreshing a selector: anchors are replayed, and a refresh that lowers held-out agreement is not kept."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.problems import raises
from tests.helpers.rated_images import SIDE, rated
from toolkit.errors import DataError
from toolkit.imagegen.evaluation.statistics import Bootstrap, Figure, undefined
from toolkit.imagegen.scorers.fitting import FitSettings, load_trained_state, trained_state
from toolkit.imagegen.scorers.metrics import ScoredRatings, rating_figures
from toolkit.imagegen.scorers.selector import Selector, SelectorSettings, start_fitting
from toolkit.imagegen.scorers.vision_tower import TowerSettings
from toolkit.imagegen.training.refresh import RefreshSettings, decide, joined, with_anchors
from toolkit.scoring.statistics import Estimate

torch.set_num_threads(1)

SETTINGS = RefreshSettings(anchors_fraction=0.5, tolerance=0.0, seed=0)


def figure(value: float) -> Figure:
    return Figure(Estimate(value, 10, None, None, "none", 10))


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_anchors_are_low_ratings_in_the_given_fraction(fraction: float) -> None:
    ratings = rated(120, 0)
    passed = ratings.take((ratings.levels_N == 2).nonzero()[:, 0].tolist()[:30])
    settings = replace(SETTINGS, anchors_fraction=fraction)
    found = with_anchors(passed, ratings, lowest_passing=2, settings=settings)
    low = (found.levels_N < 2).float().mean().item()
    assert low == pytest.approx(fraction, abs=0.01)
    assert torch.equal(found.images_NCHW[:30], passed.images_NCHW)
    counts = torch.bincount(found.levels_N[30:], minlength=2)
    assert abs(int(counts[0] - counts[1])) <= 1
    assert torch.equal(found.levels_N, with_anchors(passed, ratings, 2, settings).levels_N)


def test_few_anchors_are_repeated_evenly() -> None:
    ratings = rated(40, 0)
    low = (ratings.levels_N == 0).nonzero()[:3, 0].tolist()
    high = (ratings.levels_N == 2).nonzero()[:6, 0].tolist()
    found = with_anchors(ratings.take(high), ratings.take(low), lowest_passing=1, settings=SETTINGS)
    assert sorted(found.groups[6:]) == sorted([ratings.groups[row] for row in low] * 2)


def test_a_low_level_without_ratings_is_an_error() -> None:
    ratings = rated(60, 0)
    high = ratings.take((ratings.levels_N > 0).nonzero()[:, 0].tolist())
    with raises(DataError, "imagegen.anchor_levels_missing"):
        with_anchors(high, high, lowest_passing=2, settings=SETTINGS)


def test_a_refresh_is_kept_unless_agreement_drops() -> None:
    settings = replace(SETTINGS, tolerance=0.01)
    assert decide(figure(0.8), figure(0.8), settings).kept
    assert decide(figure(0.8), figure(0.795), settings).kept
    assert not decide(figure(0.8), figure(0.78), settings).kept
    assert not decide(figure(0.8), undefined("all scores are equal", 10, 10), settings).kept
    assert decide(undefined("all scores are equal", 10, 10), figure(0.1), settings).kept


def held_out(selector: Selector) -> Figure:
    test = rated(150, 7)
    scored = selector.score(test.images_NCHW)
    assert scored.levels_N is not None
    ratings = ScoredRatings(
        scored.scores_N.numpy(),
        scored.levels_N.numpy(),
        test.levels_N.numpy(),
        3,
        test.modalities,
        test.groups,
    )
    return rating_figures(ratings, Bootstrap(resamples=50)).kappa


@pytest.mark.slow
def test_a_selector_refreshed_on_high_ratings_alone_is_rolled_back_and_one_with_anchors_is_kept() -> None:
    train = rated(192, 1)
    first = SelectorSettings(tower=TowerSettings(width=4), fit=FitSettings(12, 32, 4e-3))
    selector = Selector(first, n_levels=3, image_size=SIDE)
    start_fitting(selector, train, None).run()
    before, state = held_out(selector), {name: value.clone() for name, value in trained_state(selector).items()}
    new = rated(192, 2)
    passed = new.take((new.levels_N == 2).nonzero()[:, 0].tolist())
    outcomes = []
    for rows in (passed, with_anchors(passed, train, 2, SETTINGS)):
        load_trained_state(selector, state)
        start_fitting(selector, rows, None, refresh=FitSettings(6, 32, 2e-3)).run()
        outcomes.append(decide(before, held_out(selector), replace(SETTINGS, tolerance=0.05)))
    assert [outcome.kept for outcome in outcomes] == [False, True]
    load_trained_state(selector, state)
    assert held_out(selector).value == before.value


def test_joined_ratings_keep_their_columns() -> None:
    first, second = rated(5, 0), rated(7, 1)
    both = joined(first, second)
    assert len(both) == 12
    assert both.prompts == first.prompts + second.prompts
    assert torch.equal(both.levels_N[5:], second.levels_N)
