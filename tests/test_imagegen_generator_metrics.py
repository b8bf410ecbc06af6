"""Metrics of generated images against closed forms, SciPy, scikit-learn and direct loops."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import FrechetInceptionDistance

from tests.helpers.optional import defined
from tests.helpers.problems import raises
from tests.helpers.rated_images import SIDE, drawn
from toolkit.errors import DataError, ModelError, TrainingError
from toolkit.imagegen.evaluation.image_metrics import (
    STANDARD,
    DistributionSettings,
    FeatureSet,
    copy_figures,
    distribution_figures,
    diversity_figures,
    fid,
    kid,
    nearest_distances,
    pair_ms_ssim,
    prompt_pairs,
    setting_for,
    squared_mmd,
)
from toolkit.imagegen.evaluation.statistics import Bootstrap, ImageKey, compare_arms
from toolkit.imagegen.scorers.extractor import Extractor, ExtractorSettings, fit_extractor
from toolkit.imagegen.scorers.fitting import FitSettings
from toolkit.imagegen.scorers.vision_tower import TowerSettings

torch.set_num_threads(1)

BOOTSTRAP = Bootstrap(resamples=200)


def feature_set(n: int, seed: int, shift: float = 0.0, n_features: int = 8, per_group: int = 2) -> FeatureSet:
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.5, 2, n_features)
    features = rng.normal(size=(n, n_features)) * scale + shift
    return FeatureSet(torch.tensor(features), tuple(f"g{index // per_group}" for index in range(n)))


def closed_form_fid(first: np.ndarray, second: np.ndarray) -> float:
    covariances = np.cov(first.T), np.cov(second.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root))


def direct_kid(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(first), len(second)
    within = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(a, b) for a in first for b in second) / (n * m)


# KID and FID


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_fid_equals_the_closed_form_for_gaussians(shift: float) -> None:
    real, generated = feature_set(64, 0), feature_set(64, 1, shift)
    found = fid(real, generated)
    assert found.value == pytest.approx(
        closed_form_fid(real.features_NF.numpy(), generated.features_NF.numpy()), abs=1e-7
    )
    assert found.estimate.low is None


def test_fid_of_given_moments_equals_its_formula_by_hand() -> None:
    # Features whose sample covariance is diagonal, so that the formula needs no matrix root.
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 5)) - 0)[0][:, 1:]
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    basis -= basis.mean(0)
    first, second = basis * np.sqrt(39) * [1, 2, 3, 4], basis * np.sqrt(39) * [2, 2, 1, 4] + [1, 0, 0, 2]
    real, generated = (FeatureSet(torch.tensor(each), tuple(map(str, range(40)))) for each in (first, second))
    assert fid(real, generated).value == pytest.approx(1 + 4 + (1 - 2) ** 2 + (3 - 1) ** 2, abs=1e-6)


def test_fid_needs_four_images_per_feature() -> None:
    assert fid(feature_set(32, 0), feature_set(32, 1)).value is not None
    found = fid(feature_set(32, 0), feature_set(31, 1))
    assert found.value is None
    assert "32" in str(found.reason)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kid_equals_a_direct_mmd(shift: float) -> None:
    real, generated = feature_set(30, 0), feature_set(30, 1, shift)
    expected = direct_kid(real.features_NF.numpy(), generated.features_NF.numpy())
    found = kid(real, generated)
    assert found.value == pytest.approx(expected, abs=1e-9)
    weighted = squared_mmd(real.features_NF.numpy(), generated.features_NF.numpy(), np.ones((1, 30)), np.ones((1, 30)))
    assert weighted[0] == pytest.approx(expected, abs=1e-9)


def test_a_weighted_mmd_leaves_out_pairs_of_an_image_with_itself() -> None:
    first, second = feature_set(12, 0).features_NF.numpy(), feature_set(10, 1).features_NF.numpy()
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, 12), rng.integers(0, 3, 10)
    kernel = [(a @ b.T / 8 + 1) ** 3 for a, b in ((first, first), (second, second), (first, second))]

    def within(matrix: np.ndarray, w: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(w)) for j in range(len(w)) if i != j]
        return float(sum(w[i] * w[j] * matrix[i, j] for i, j in pairs) / sum(w[i] * w[j] for i, j in pairs))

    across = weights[0] @ kernel[2] @ weights[1] / (weights[0].sum() * weights[1].sum())
    expected = within(kernel[0], weights[0]) + within(kernel[1], weights[1]) - 2 * across
    found = squared_mmd(first, second, weights[0][None].astype(float), weights[1][None].astype(float))
    assert found[0] == pytest.approx(expected)


def test_the_interval_of_kid_covers_0_for_one_distribution_and_not_for_two() -> None:
    same = kid(feature_set(150, 0), feature_set(150, 1)).estimate
    other = kid(feature_set(150, 0), feature_set(150, 1, shift=1.0)).estimate
    assert same.low is not None
    assert same.high is not None
    assert other.low is not None
    assert same.low < 0 < same.high
    assert other.low > 0


def test_the_interval_of_kid_has_the_width_of_repeated_draws_and_holds_the_value() -> None:
    rng = np.random.default_rng(0)

    def clustered(shift: float) -> FeatureSet:
        """15 groups of 6 images, which are alike within a group."""
        centres = rng.normal(shift, 1, (15, 1, 4))
        features = (centres + 0.3 * rng.normal(size=(15, 6, 4))).reshape(90, 4)
        return FeatureSet(torch.from_numpy(features), tuple(str(group) for group in range(15) for _ in range(6)))

    found = [kid(clustered(0.0), clustered(0.8)).estimate for _ in range(120)]
    assert all(defined(one.low) <= defined(one.value) <= defined(one.high) for one in found)
    assert {one.method for one in found} == {"jackknife by group"}
    deviation = np.std([defined(one.value) for one in found])
    widths = np.array([defined(one.high) - defined(one.low) for one in found]) / (2 * 1.96)
    assert 0.75 < np.sqrt(np.mean(widths**2)) / deviation < 1.4


def test_real_images_are_compared_with_real_images_at_the_same_n() -> None:
    real, generated = feature_set(200, 0), feature_set(300, 1, shift=1.0)
    found = distribution_figures(generated, real, DistributionSettings())
    assert (found.n, found.num_features) == (100, 8)
    figures = (found.kid, found.fid, found.real_kid, found.real_fid)
    assert {figure.estimate.n for figure in figures} == {100}
    assert defined(found.real_fid.value) < defined(found.fid.value) / 3
    assert abs(defined(found.real_kid.value)) < defined(found.kid.value) / 3


def test_no_patient_is_in_both_halves_of_the_real_images() -> None:
    # All images of a patient are the same. If halves shared patients, real images would look closer than they are.
    rng = np.random.default_rng(0)
    patients = rng.normal(size=(40, 4))
    real = FeatureSet(torch.tensor(np.repeat(patients, 10, axis=0)), tuple(f"p{i // 10}" for i in range(400)))
    found = distribution_figures(real, real, DistributionSettings())
    assert found.n == 200
    assert defined(found.real_fid.value) > 0.02


def test_a_single_image_has_no_kid() -> None:
    found = distribution_figures(feature_set(1, 0), feature_set(20, 1), DistributionSettings())
    assert (found.kid.value, found.fid.value) == (None, None)
    assert found.kid.reason


def test_metrics_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    kid(feature_set(20, 0), feature_set(20, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_kid_does_not_depend_on_the_global_generator() -> None:
    with torch.random.fork_rng(devices=[]):
        values = set()
        for seed in range(8):
            torch.manual_seed(seed)
            values.add(kid(feature_set(150, 0), feature_set(150, 1)).value)
    assert len(values) == 1


# The extractor


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    images, _, kinds = drawn(128, 0)
    settings = ExtractorSettings(TowerSettings(width=4), num_features=16, fit=FitSettings(epochs=4, batch_size=32))
    found = Extractor(settings, SIDE)
    records = fit_extractor(found, images, [" ".join(kind) for kind in kinds])
    assert records[-1].loss < records[0].loss
    return found


def test_features_are_the_principal_components_of_the_tower(extractor: Extractor) -> None:
    images = drawn(128, 0)[0]
    with torch.no_grad():
        standard = extractor.standardise(extractor.tower(images)).double().numpy()
    pca = PCA(16).fit(standard)
    theirs, ours = pca.transform(standard), extractor.features(images).numpy()
    signs = np.sign((theirs * ours).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-3)
    assert extractor.explained.item() == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)


def test_torchmetrics_takes_the_extractor_itself(extractor: Extractor) -> None:
    first, second = drawn(80, 1)[0], drawn(80, 2)[0]
    metric = FrechetInceptionDistance(feature=extractor, normalize=True)
    metric.update(first, real=True)
    metric.update(second, real=False)
    real, generated = (FeatureSet(extractor.features(each), tuple(map(str, range(80)))) for each in (first, second))
    assert float(metric.compute()) == pytest.approx(fid(real, generated).value, rel=1e-2)


def test_spoiled_images_are_farther_from_real_ones(extractor: Extractor) -> None:
    images, quality, _ = drawn(600, 3)
    best, worst = quality.argsort(descending=True)[:300], quality.argsort()[:150]
    groups = tuple(map(str, range(300)))
    real = FeatureSet(extractor.features(images[best]), groups)
    generated = FeatureSet(extractor.features(images[worst]), groups[:150])
    found = distribution_figures(generated, real, DistributionSettings())
    assert defined(found.kid.estimate.low) > defined(found.real_kid.estimate.high)
    assert defined(found.fid.value) > 3 * defined(found.real_fid.value)


def test_extractors_that_cannot_be_are_errors() -> None:
    with raises(ModelError, "imagegen.extractor_features_out_of_range"):
        Extractor(ExtractorSettings(num_features=65), SIDE)
    with raises(ModelError, "imagegen.extractor_features_above_tower"):
        Extractor(ExtractorSettings(TowerSettings("cnn", width=4), num_features=64), 4)
    small = Extractor(ExtractorSettings(TowerSettings(width=4), num_features=16), SIDE)
    images = drawn(20, 0)[0]
    with raises(DataError, "imagegen.extractor_images_too_few"):
        fit_extractor(small, images[:16], ["a", "b"] * 8)
    with raises(DataError, "imagegen.extractor_labels_too_few"):
        fit_extractor(small, images, ["a"] * 20)


# Diversity


def test_pairs_are_those_of_one_prompt() -> None:
    prompts = ["a"] * 5 + ["b"] * 3 + ["c"]
    pairs = prompt_pairs(prompts, max_pairs=100, seed=0)
    assert len(pairs.first) == 10 + 3
    assert all(prompts[a] == prompts[b] == name for a, b, name in zip(*map(list, vars_of(pairs)), strict=True))
    assert all(a < b for a, b in zip(pairs.first, pairs.second, strict=True))
    fewer = prompt_pairs(prompts, max_pairs=4, seed=0)
    assert fewer.prompts == ("a",) * 4 + ("b",) * 3
    assert fewer == prompt_pairs(prompts, max_pairs=4, seed=0)
    assert prompt_pairs(["a", "b"], 4, 0).first == ()


def vars_of(pairs: object) -> tuple[tuple[object, ...], ...]:
    return pairs.first, pairs.second, pairs.prompts  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", [16, 32, 43, 44, 175, 176])
def test_ms_ssim_is_1_for_copies_and_falls_with_noise(side: int) -> None:
    base = drawn(1, 0, side=side)[0]
    noise = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    images = torch.cat([base, base, (base + 0.05 * noise[:1]).clamp(0, 1), (base + 0.3 * noise[1:2]).clamp(0, 1)])
    setting = setting_for(side)
    assert setting is not None
    pairs = prompt_pairs(["a"] * 4, 10, 0)
    copy, little, much = pair_ms_ssim(images, pairs, setting)[:3].tolist()
    assert copy == pytest.approx(1, abs=1e-5)
    assert 1 > little > much >= 0


def test_the_setting_depends_on_the_side_and_is_reported() -> None:
    assert setting_for(512) == STANDARD
    assert setting_for(15) is None
    images, features = drawn(6, 0)[0], torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pairs = prompt_pairs(["a", "b"] * 3, 10, 0)
    found = diversity_figures(images, features, pairs, BOOTSTRAP)
    assert found.ms_ssim_setting == "betas 0.5 0.5, Gaussian window of 7 pixels, sigma 0.8"
    expected = np.mean([(features[a] - features[b]).norm() for a, b in zip(pairs.first, pairs.second, strict=True)])
    assert found.distance.value == pytest.approx(expected, rel=1e-6)
    assert (found.distance.estimate.n, found.distance.estimate.groups) == (6, 2)
    tiny = diversity_figures(images[:, :, :8, :8], features, pairs, BOOTSTRAP)
    assert tiny.ms_ssim.reason
    assert tiny.ms_ssim_setting == ""
    none = diversity_figures(images, features, prompt_pairs(list("abcdef"), 10, 0), BOOTSTRAP)
    assert none.distance.reason
    assert none.ms_ssim.reason


# Copies


def test_nearest_distances_equal_those_of_scikit_learn() -> None:
    real, generated = feature_set(100, 0), feature_set(40, 1)
    search = NearestNeighbors(n_neighbors=1).fit(real.features_NF.numpy())
    expected = search.kneighbors(generated.features_NF.numpy())[0][:, 0]
    np.testing.assert_allclose(nearest_distances(generated.features_NF, real, None), expected)


def test_the_floor_leaves_out_images_of_the_same_patient() -> None:
    real = feature_set(200, 0, per_group=1)
    twins = FeatureSet(torch.cat([real.features_NF, real.features_NF + 1e-4]), (*real.groups, *real.groups))
    alone, with_twins = (copy_figures(feature_set(50, 1), each, BOOTSTRAP) for each in (real, twins))
    assert alone.floor == pytest.approx(with_twins.floor, abs=1e-3)
    search = NearestNeighbors(n_neighbors=2).fit(real.features_NF.numpy())
    between = search.kneighbors(real.features_NF.numpy())[0][:, 1]
    assert alone.floor == pytest.approx(np.quantile(between, 0.01))
    assert alone.real_median == pytest.approx(np.median(between), rel=0.02)


def test_copies_are_below_the_floor_and_new_images_are_not() -> None:
    real = feature_set(400, 0, per_group=1)
    fresh = copy_figures(feature_set(100, 1), real, BOOTSTRAP)
    copied = copy_figures(FeatureSet(real.features_NF[:100], ("p",) * 50 + ("q",) * 50), real, BOOTSTRAP)
    assert defined(fresh.below_floor.value) < 0.06
    assert copied.below_floor.value == 1
    assert copied.nearest == 0
    assert defined(fresh.nearest) > 0


def test_real_images_that_occur_twice_do_not_hide_copies() -> None:
    real = feature_set(50, 0, per_group=1)
    doubled = FeatureSet(real.features_NF.repeat(2, 1), tuple(map(str, range(100))))
    found = copy_figures(FeatureSet(real.features_NF[:10], ("p",) * 10), doubled, BOOTSTRAP)
    assert found.floor == 0
    assert found.below_floor.value == 1


def test_one_group_of_real_images_has_no_floor() -> None:
    real = FeatureSet(feature_set(10, 0).features_NF, ("p",) * 10)
    found = copy_figures(feature_set(5, 1), real, BOOTSTRAP)
    assert found.floor is None
    assert found.below_floor.reason
    assert found.generated_median is not None
    assert copy_figures(feature_set(0, 1), feature_set(10, 0), BOOTSTRAP).below_floor.reason


# Paired differences


def test_arms_are_compared_image_by_image() -> None:
    rng = np.random.default_rng(0)
    keys = [ImageKey(f"prompt {index % 24}", index // 24) for index in range(384)]
    before = {key: float(rng.random()) for key in keys}
    after = {key: before[key] + 0.05 + 0.01 * float(rng.normal()) for key in reversed(keys)}
    found = compare_arms(before, after, BOOTSTRAP)
    assert found.difference.value == pytest.approx(np.mean([after[key] - before[key] for key in keys]))
    assert (found.difference.n, found.difference.groups) == (384, 24)
    assert found.clear
    # The images differ far more among each other than the arms do.
    assert defined(found.difference.high) - defined(found.difference.low) < 0.01


def test_arms_with_other_images_or_too_few_are_errors() -> None:
    scores = {ImageKey("a", index): 0.5 for index in range(400)}
    other = {**scores, ImageKey("a", 999): 0.5}
    with raises(TrainingError, "imagegen.arms_differ_in_images"):
        compare_arms(scores, other, BOOTSTRAP)
    few = {ImageKey("a", index): 0.5 for index in range(383)}
    with raises(TrainingError, "imagegen.comparison_too_small"):
        compare_arms(few, few, BOOTSTRAP)
    assert compare_arms(few, few, BOOTSTRAP, min_pairs=32).difference.value == 0
