"""Evaluation of scorers and of generated images from end to end, on drawn images of known quality."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.helpers.imagegen_models import GUARDS, evaluation_of
from tests.helpers.optional import defined
from tests.helpers.rated_images import SIDE, drawn, rated
from toolkit.imagegen.evaluation.evaluate import (
    GeneratedImages,
    ImageEvaluationSettings,
    ImageMetrics,
    Reference,
    Scorers,
    evaluate_images,
    make_reference,
)
from toolkit.imagegen.evaluation.statistics import Bootstrap, ImageKey, compare_arms
from toolkit.imagegen.scorers.extractor import Extractor, ExtractorSettings, fit_extractor
from toolkit.imagegen.scorers.fitting import FitSettings
from toolkit.imagegen.scorers.heads import Scored
from toolkit.imagegen.scorers.metrics import evaluate_policy, evaluate_selector, selector_threshold
from toolkit.imagegen.scorers.policy import MismatchPool, Policy, PolicySettings, start_policy_fitting
from toolkit.imagegen.scorers.reward import RewardSettings, ThresholdSettings, passes, rewards
from toolkit.imagegen.scorers.selector import Selector, SelectorSettings, check_independent, start_fitting
from toolkit.imagegen.scorers.text_tower import TextSettings, vocabulary_of
from toolkit.imagegen.scorers.vision_tower import TowerSettings
from toolkit.imagegen.training.guards import check_guards

torch.set_num_threads(1)

BOOTSTRAP = Bootstrap(resamples=100)
SETTINGS = ImageEvaluationSettings(BOOTSTRAP)


@dataclass(frozen=True)
class Fitted:
    scorers: Scorers
    extractor: Extractor
    reference: Reference


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    selector_rows, judge_rows = rated(192, 1), rated(192, 2)
    selector_settings = SelectorSettings(tower=TowerSettings(width=4), fit=FitSettings(8, 32, 4e-3))
    judge_settings = SelectorSettings(tower=TowerSettings("tiny-clip"), fit=FitSettings(20, 32, 4e-3), seed=1)
    check_independent(selector_settings, judge_settings, ["a"], ["b"])
    selector, judge = (Selector(each, 3, SIDE) for each in (selector_settings, judge_settings))
    start_fitting(selector, selector_rows, None).run()
    start_fitting(judge, judge_rows, None).run()
    policy_settings = PolicySettings(
        tower=TowerSettings(width=4), text=TextSettings(width=8), fit=FitSettings(12, 32, 4e-3)
    )
    policy = Policy(policy_settings, vocabulary_of(selector_rows.prompts), SIDE)
    start_policy_fitting(policy, selector_rows, None, 3).run()
    images, quality, kinds = drawn(400, 3)
    real = quality > 0.5
    prompts = [f"{modality}: {finding}" for (modality, finding), good in zip(kinds, real.tolist(), strict=True) if good]
    extractor_settings = ExtractorSettings(TowerSettings(width=4), num_features=16, fit=FitSettings(4, 32))
    extractor = Extractor(extractor_settings, SIDE)
    fit_extractor(extractor, images[real], prompts)
    groups = [str(index) for index in range(len(prompts))]
    reference = make_reference(extractor, images[real], prompts, groups, SETTINGS)
    thresholds = [selector_threshold(each, rated(96, 4), 2, ThresholdSettings(0.7)).value for each in (judge, selector)]
    return Fitted(Scorers(judge, thresholds[0], selector, thresholds[1], policy), extractor, reference)


def generated(quality_from: float, n: int = 96) -> GeneratedImages:
    """Images whose quality is at least the given one, from the same prompts and noise seeds each time."""
    images, quality, kinds = drawn(8 * n, 5)
    rows: list[int] = []
    keys: list[ImageKey] = []
    for kind in sorted(set(kinds)):
        good = [row for row in range(8 * n) if kinds[row] == kind and quality_from <= quality[row] < quality_from + 0.4]
        rows += good[: n // 4]
        keys += [ImageKey(f"{kind[0]}: {kind[1]}", seed) for seed in range(n // 4)]
    assert len(rows) == n
    return GeneratedImages(images[rows], tuple(keys))


@pytest.fixture(scope="module")
def better(fitted: Fitted) -> ImageMetrics:
    return evaluate_images(generated(0.6), fitted.scorers, fitted.extractor, fitted.reference, SETTINGS)


@pytest.fixture(scope="module")
def worse(fitted: Fitted) -> ImageMetrics:
    return evaluate_images(generated(0.0), fitted.scorers, fitted.extractor, fitted.reference, SETTINGS)


@pytest.mark.slow
def test_a_selector_is_evaluated_on_held_out_ratings(fitted: Fitted) -> None:
    held_out = rated(150, 6)
    found = evaluate_selector(fitted.scorers.judge, held_out, BOOTSTRAP)
    scores = fitted.scorers.judge.score(held_out.images_NCHW).scores_N
    assert found.overall.spearman.value == pytest.approx(spearmanr(scores, held_out.levels_N).statistic)
    assert defined(found.overall.spearman.value) > 0.6
    assert defined(found.overall.mae.value) < defined(found.overall.baseline_mae.value)
    assert sorted(found.by_modality) == ["CT", "OCT"]
    assert evaluate_selector(fitted.scorers.judge, held_out.take([]), BOOTSTRAP).overall.spearman.reason


def test_a_policy_is_evaluated_on_held_out_images(fitted: Fitted) -> None:
    held_out, policy = rated(100, 6), fitted.scorers.policy
    assert policy is not None
    pool = MismatchPool(held_out.prompts, held_out.modalities)
    found = evaluate_policy(policy, held_out, pool, BOOTSTRAP).overall
    assert defined(found.auroc.value) > 0.75
    assert found.auroc_same_modality.estimate.n == 50
    grid = policy.score_grid(held_out.images_NCHW, list(pool.distinct))
    own = [pool.distinct.index(prompt) for prompt in held_out.prompts]
    first = (grid.argmax(dim=1) == torch.tensor(own)).double().mean().item()
    assert found.recall[0].figure.value == pytest.approx(first)
    assert found.recall[0].chance == 1 / 4
    assert found.recall[1].figure.reason


def test_a_held_out_prompt_that_training_does_not_have_is_ranked_too(fitted: Fitted) -> None:
    held_out, policy = rated(20, 6), fitted.scorers.policy
    assert policy is not None
    pool = MismatchPool(["CT: nodule", "OCT: nodule"], ["CT", "OCT"])
    found = evaluate_policy(policy, held_out, pool, BOOTSTRAP).overall
    assert found.recall[0].chance == 1 / 4


def test_better_images_score_higher_and_are_closer_to_real_ones(better: ImageMetrics, worse: ImageMetrics) -> None:
    assert better.n == worse.n == 96
    found = compare_arms(worse.judge_by_key, better.judge_by_key, BOOTSTRAP, min_pairs=96)
    assert found.clear
    assert found.difference.value == pytest.approx(defined(better.judge.value) - defined(worse.judge.value))
    assert defined(better.judge_pass_rate.value) > defined(worse.judge_pass_rate.value) + 0.2
    assert defined(better.selector_pass_rate.value) > defined(worse.selector_pass_rate.value) + 0.2
    assert defined(better.distribution.kid.value) < defined(worse.distribution.kid.value)
    assert defined(better.distribution.fid.value) < defined(worse.distribution.fid.value)
    assert better.distribution.real_fid.estimate.n == better.distribution.fid.estimate.n
    assert better.agreement is not None
    assert better.agreement.groups == 4


def test_the_guards_take_the_metrics(better: ImageMetrics, worse: ImageMetrics) -> None:
    rounds = enumerate((better, worse, worse))
    course = [evaluation_of(each, number, kl=0.01, clipped_advantages=0.0) for number, each in rounds]
    verdicts = {each.guard: each.status for each in check_guards(course, replace(GUARDS, bootstrap=BOOTSTRAP))}
    assert verdicts["judge"] == "fired"
    assert "not measured" not in verdicts.values()


def test_images_that_are_all_alike_fire_the_diversity_guard(fitted: Fitted) -> None:
    source = generated(0.6)
    first = torch.cat([source.images_NCHW[24 * kind : 24 * kind + 1].repeat(24, 1, 1, 1) for kind in range(4)])
    collapsed = GeneratedImages((first + 0.001 * torch.rand(first.shape)).clamp(0, 1), source.keys)
    metrics = evaluate_images(collapsed, fitted.scorers, fitted.extractor, fitted.reference, SETTINGS)
    assert defined(metrics.diversity.ms_ssim.value) > 0.99
    verdicts = check_guards([evaluation_of(metrics, 0, None, None)], replace(GUARDS, bootstrap=BOOTSTRAP))
    assert next(each for each in verdicts if each.guard == "diversity").stops


def test_training_images_that_are_reproduced_fire_the_copy_guard(fitted: Fitted) -> None:
    images, quality, kinds = drawn(400, 3)
    rows = [row for row in range(400) if quality[row] > 0.5][:40]
    keys = tuple(ImageKey(" ".join(kinds[row]), row) for row in rows)
    metrics = evaluate_images(
        GeneratedImages(images[rows], keys), fitted.scorers, fitted.extractor, fitted.reference, SETTINGS
    )
    assert metrics.copies.below_floor.value == 1
    verdicts = check_guards([evaluation_of(metrics, 0, None, None)], replace(GUARDS, bootstrap=BOOTSTRAP))
    assert next(each for each in verdicts if each.guard == "copies").stops


def test_two_images_of_one_key_are_rejected() -> None:
    with pytest.raises(ValueError):
        GeneratedImages(torch.zeros(2, 3, 8, 8), (ImageKey("a", 0),) * 2)


# The reward


def test_rewards_are_products_of_lower_bounds() -> None:
    selector = Scored(torch.tensor([0.8, 0.5, 0.9]), torch.tensor([0.6, 0.5, 0.0]))
    policy = Scored(torch.tensor([0.5, 1.0, 1.0]), torch.tensor([0.4, 1.0, 1.0]))
    found = rewards(selector, policy, RewardSettings(selector_power=2.0, policy_power=0.5))
    np.testing.assert_allclose(found, [0.36 * 0.4**0.5, 0.25, 0.0], rtol=1e-6)
    np.testing.assert_allclose(rewards(selector, None, RewardSettings()), [0.6, 0.5, 0.0], rtol=1e-6)
    assert passes(selector, 0.8).tolist() == [True, False, True]
    with pytest.raises(ValueError):
        rewards(selector, policy, RewardSettings(policy_power=-1))
