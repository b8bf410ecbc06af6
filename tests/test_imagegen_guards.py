"""Guards: when each fires, its action, and its verdict if a value was not measured."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.imagegen_models import GUARDS
from tests.helpers.imagegen_runs import RECIPE
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import TrainingError
from toolkit.imagegen.evaluation.statistics import Bootstrap, ImageKey
from toolkit.imagegen.settings import guard_settings
from toolkit.imagegen.training.guards import Action, Evaluation, GuardSettings, Verdict, best_evaluation, check_guards

SETTINGS = replace(GUARDS, bootstrap=Bootstrap(resamples=300))
KEYS = [ImageKey(f"prompt {index % 16}", index // 16) for index in range(384)]
BASE = dict(zip(KEYS, np.random.default_rng(0).uniform(0.3, 0.7, 384).tolist(), strict=True))


def evaluation(number: int, change: float, noise: float = 0.05, **measured: float) -> Evaluation:
    """The base's judge scores, changed by ``change`` with noise per image."""
    rng = np.random.default_rng(number)
    scores = {key: value + change + noise * float(rng.normal()) for key, value in BASE.items()}
    return Evaluation(number, scores, **measured)


def history(*changes: float) -> list[Evaluation]:
    return [evaluation(number, change) for number, change in enumerate(changes)]


def verdict(name: str, evaluations: list[Evaluation], settings: GuardSettings = SETTINGS) -> Verdict:
    return next(each for each in check_guards(evaluations, settings) if each.guard == name)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ((0.0, 0.1, 0.2), "passed"),
        ((0.0, 0.2, 0.15), "passed"),  # It has fallen once only.
        ((0.0, 0.2, 0.15, 0.12), "fired"),
        ((0.0, 0.2, 0.15, 0.2), "passed"),  # It has recovered.
        ((0.0, 0.2, 0.1, 0.15, 0.3), "passed"),
        ((0.2, 0.0, 0.05), "fired"),  # The base is the best.
        ((0.0, 0.2, 0.1999, 0.1998), "passed"),  # Less than the interval.
        ((0.0, 0.2), "not measured"),
        ((0.0,), "not measured"),
    ],
)
def test_the_judge_guard_fires_after_two_evaluations_below_the_best(changes: tuple[float, ...], status: str) -> None:
    found = verdict("judge", history(*changes))
    assert found.status == status
    assert found.stops == (status == "fired")


def test_the_judge_guard_compares_image_by_image() -> None:
    # The scores of images differ by far more than the fall, so that intervals of the means overlap.
    evaluations = history(0.0, 0.2, 0.18, 0.18)
    found = verdict("judge", evaluations)
    assert found.status == "fired"
    best, last = evaluations[1], evaluations[3]
    expected = np.mean([last.judge_scores[key] - best.judge_scores[key] for key in KEYS])
    assert found.value == pytest.approx(expected)
    assert found.interval is not None
    assert (found.interval.n, found.interval.groups) == (384, 16)


def test_noise_alone_rarely_fires_the_judge_guard() -> None:
    fired = 0
    for seed in range(40):
        evaluations = [replace(evaluation(100 * seed + number, 0.0), round=number) for number in range(4)]
        fired += verdict("judge", evaluations).status == "fired"
    assert fired <= 4


def test_one_prompt_gives_the_judge_no_interval() -> None:
    scores = {ImageKey("a", index): 0.5 + index / 1000 for index in range(20)}
    evaluations = [Evaluation(number, {key: value - number for key, value in scores.items()}) for number in range(4)]
    assert verdict("judge", evaluations).status == "not measured"


def test_evaluations_of_other_images_are_an_error() -> None:
    evaluations = history(0.0, 0.1, 0.2)
    fewer = dict(list(evaluations[2].judge_scores.items())[:-1])
    with raises(TrainingError, "imagegen.arms_differ_in_images"):
        check_guards([*evaluations[:2], replace(evaluations[2], judge_scores=fewer)], SETTINGS)


@pytest.mark.parametrize(
    ("name", "measured", "status"),
    [
        ("diversity", {"diversity": 0.61, "real_diversity": 1.0}, "passed"),
        ("diversity", {"diversity": 1.19, "real_diversity": 2.0}, "fired"),
        ("diversity", {"diversity": math.nan, "real_diversity": 2.0}, "fired"),
        ("diversity", {"diversity": 1.0}, "not measured"),
        ("diversity", {"diversity": 1.0, "real_diversity": 0.0}, "not measured"),
        ("kl", {"kl": 0.1}, "passed"),
        ("kl", {"kl": 0.11}, "fired"),
        ("kl", {"kl": math.nan}, "fired"),
        ("kl", {}, "not measured"),
        ("copies", {"below_floor": 0.05}, "passed"),
        ("copies", {"below_floor": 0.06}, "fired"),
        ("copies", {}, "not measured"),
        ("advantage_clip", {"clipped_advantages": 0.1}, "passed"),
        ("advantage_clip", {"clipped_advantages": 0.2}, "fired"),
        ("advantage_clip", {}, "not measured"),
    ],
)
def test_a_guard_fires_beyond_its_limit(name: str, measured: dict[str, float], status: str) -> None:
    found = verdict(name, [evaluation(0, 0.0, **measured)])
    assert found.status == status
    assert found.round == 0
    assert found.text
    assert (found.value is None) == (status == "not measured")


@pytest.mark.parametrize("action", ["stop", "log"])
@pytest.mark.parametrize("name", ["judge", "diversity", "kl", "copies", "advantage_clip"])
def test_a_guard_that_only_logs_does_not_stop(name: str, action: Action) -> None:
    last = evaluation(3, 0.0, diversity=0.1, real_diversity=1.0, kl=9.0, below_floor=0.5, clipped_advantages=0.9)
    changes: dict[str, Any] = {name: action}
    settings = replace(SETTINGS, **changes)
    found = verdict(name, [*history(0.0, 0.3, 0.1), last], settings)
    assert (found.status, found.action, found.stops) == ("fired", action, action == "stop")


def test_by_default_only_clipped_advantages_do_not_stop() -> None:
    actions = {each.guard: each.action for each in check_guards(history(0.0), guard_settings(load_recipe(RECIPE)))}
    assert actions == {
        "judge": "stop",
        "diversity": "stop",
        "kl": "stop",
        "copies": "stop",
        "advantage_clip": "log",
    }


def test_the_best_evaluation_is_the_earliest_with_the_highest_judge_score() -> None:
    assert best_evaluation(history(0.0, 0.2, 0.1)).round == 1
    scores = {ImageKey("a", 0): 0.5}
    assert best_evaluation([Evaluation(number, scores) for number in range(3)]).round == 0


def test_an_unguarded_run_that_over_optimises_is_stopped_before_its_end() -> None:
    # The course of the judge in an online update on the selector alone.
    course = [0.0, 0.08, 0.14, 0.16, 0.13, 0.08, 0.03, -0.02]
    evaluations = history(*course)
    first = next(last for last in range(1, 9) if any(each.stops for each in check_guards(evaluations[:last], SETTINGS)))
    assert first == 6  # After rounds 4 and 5.
    assert best_evaluation(evaluations[:first]).round == 3


def test_rounds_must_increase() -> None:
    for rounds in ([], [1, 1], [1, 0]):
        with pytest.raises(ValueError):
            check_guards([evaluation(number, 0.0) for number in rounds], SETTINGS)
