"""Synthetic images and their simulated ratings: what is known about an image can be seen in it."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.helpers.optional import defined
from tests.helpers.problems import raises
from toolkit import recipe
from toolkit.errors import DataError
from toolkit.imagegen.ratings.experts import agreement, expert_variances, expert_weights
from toolkit.imagegen.ratings.load import Ratings, load_ratings
from toolkit.imagegen.ratings.prepare import image_stores
from toolkit.imagegen.ratings.splits import partition, require_all_levels
from toolkit.imagegen.ratings.synthetic import EXPERTS, closed_form_scores, rate, write_synthetic
from toolkit.imagegen.ratings.synthetic_images import (
    DEGRADATIONS,
    MISMATCH,
    PROMPTS,
    Degradation,
    draw,
    synthetic_image,
)
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import SYNTHETIC_EXPERT_LEVELS, SYNTHETIC_MODALITIES

IMAGES = [synthetic_image(0, index) for index in range(600)]


def section(images: int = 60, **keys: object) -> Imagegen:
    return Imagegen(synthetic={"images": images}, size=32, **keys)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_images_have_the_sizes_ranges_and_names_that_the_recipe_knows() -> None:
    assert tuple(PROMPTS) == SYNTHETIC_MODALITIES
    assert tuple(sorted({expert.level for expert in EXPERTS})) == SYNTHETIC_EXPERT_LEVELS
    for image in IMAGES:
        assert image.pixels.shape == (32, 32)
        assert image.pixels.dtype == np.float32
        assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
        assert image.prompt in PROMPTS[image.modality].values()


def test_all_prompts_are_distinct_and_all_kinds_of_images_occur() -> None:
    prompts = [prompt for findings in PROMPTS.values() for prompt in findings.values()]
    assert len(set(prompts)) == len(prompts) == 12
    assert {image.prompt for image in IMAGES} == set(prompts)
    kinds = Counter(image.degradation for image in IMAGES)
    assert set(kinds) == {"none", *DEGRADATIONS}
    assert kinds["none"] == pytest.approx(0.4 * 600, abs=40)
    assert all(kinds[kind] == pytest.approx(0.12 * 600, abs=30) for kind in DEGRADATIONS)


def test_the_truth_of_an_image_is_consistent() -> None:
    for image in IMAGES:
        assert image.agrees == (image.degradation != "wrong finding")
        assert 0 <= image.score <= image.quality <= 1
    by_kind = {kind: [image for image in IMAGES if image.degradation == kind] for kind in ("none", "wrong finding")}
    assert {image.score for image in by_kind["none"]} == {1.0}
    assert {(image.quality, image.score) for image in by_kind["wrong finding"]} == {(1.0, MISMATCH)}


def test_an_image_depends_on_seed_and_index_alone() -> None:
    again = synthetic_image(0, 17)
    assert (again.pixels == IMAGES[17].pixels).all()
    assert (again.prompt, again.severity) == (IMAGES[17].prompt, IMAGES[17].severity)
    other = synthetic_image(1, 17)
    assert not (other.pixels == IMAGES[17].pixels).all()
    larger = synthetic_image(0, 17, size=64)
    assert larger.pixels.shape == (64, 64)
    assert (larger.finding, larger.prompt, larger.severity) == (again.finding, again.prompt, again.severity)


def test_without_degradation_every_image_is_clean() -> None:
    images = [synthetic_image(0, index, degraded=0) for index in range(50)]
    assert {(image.degradation, image.score) for image in images} == {("none", 1.0)}


def nearest_mean(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> float:
    """Accuracy of the class whose mean image is nearest: a weak classifier that needs visible differences."""
    names = list(train)
    means = np.stack([train[name].mean(0) for name in names])
    right = [
        names[int(((means - image) ** 2).sum((1, 2)).argmin())] == name
        for name, images in test.items()
        for image in images
    ]
    return float(np.mean(right))


@pytest.mark.parametrize("modality", PROMPTS)
def test_a_classifier_distinguishes_the_findings_of_a_modality(modality: str) -> None:
    def drawn(seed: int, n: int) -> dict[str, np.ndarray]:
        return {
            finding: np.stack([draw(modality, finding, 32, np.random.default_rng([seed, i])) for i in range(n)])
            for finding in PROMPTS[modality]
        }

    # A lesion that can be in two places has a blurred mean, so logistic regression would do better than this.
    assert nearest_mean(drawn(0, 60), drawn(1, 60)) > 0.6


def test_a_classifier_distinguishes_modalities_easily() -> None:
    def drawn(seed: int) -> dict[str, np.ndarray]:
        return {
            modality: np.stack([draw(modality, "normal", 32, np.random.default_rng([seed, i])) for i in range(30)])
            for modality in PROMPTS
        }

    assert nearest_mean(drawn(0), drawn(1)) == 1.0


def difference(image: np.ndarray, clean: np.ndarray) -> float:
    return float(np.abs(image - clean).mean())


@pytest.mark.parametrize("kind", ["noise", "stripes", "blur", "contrast"])
def test_a_more_severe_degradation_changes_the_image_more(kind: Degradation) -> None:
    from toolkit.imagegen.ratings.synthetic_images import _DEGRADE

    clean = draw("MRI", "normal", 32, np.random.default_rng(0))
    changes = [
        difference(_DEGRADE[kind](clean, severity, np.random.default_rng(1)), clean)
        for severity in (0.1, 0.4, 0.7, 1.0)
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0.005
    assert changes[-1] > 4 * changes[0] or kind == "blur"


def test_experts_of_higher_levels_err_less_and_all_follow_the_score() -> None:
    scores = np.random.default_rng(0).random(3000)
    rated = rate(scores.tolist(), 3, 6, seed=0)
    ideal = np.clip(np.floor(scores * 3), 0, 2)
    errors: dict[str, list[float]] = {expert.rater: [] for expert in EXPERTS}
    for truth, pairs in zip(ideal, rated, strict=True):
        for expert, level in pairs:
            errors[expert.rater].append((level - truth) ** 2)
    means = [np.mean(errors[expert.rater]) for expert in EXPERTS]
    assert means == pytest.approx(sorted(means, reverse=True), abs=0.03)
    assert means[0] > 2 * means[-1]
    best = [next(level for expert, level in pairs if expert.level == 3) for pairs in rated]
    assert spearmanr(best, scores).statistic > 0.9


@pytest.mark.parametrize("raters", [1, 2, 6])
def test_each_image_is_rated_by_distinct_experts(raters: int) -> None:
    for pairs in rate([0.5] * 40, 5, raters, seed=3):
        assert len({expert.rater for expert, _ in pairs}) == raters
        assert all(0 <= level < 5 for _, level in pairs)


def test_ratings_of_an_image_do_not_depend_on_other_images() -> None:
    assert rate([0.2, 0.9, 0.4], 3, 2, seed=1)[1] == rate([1.0, 0.9], 3, 2, seed=1)[1]


def test_the_dataset_is_written_in_the_layout_of_a_real_one_and_loads_without_loss(tmp_path: Path) -> None:
    path = write_synthetic(tmp_path / "data", section(), seed=0)
    ratings = load_ratings(section(), [str(path)])
    assert ratings.dropped == ()
    assert (len(ratings.images), ratings.count) == (60, 120)
    assert all(image.patient and all(rating.rater for rating in image.ratings) for image in ratings.images)
    with (tmp_path / "data" / "truth.csv").open(newline="") as stream:
        truth = list(csv.DictReader(stream))
    assert [row["image_path"] for row in truth] == [image.name for image in ratings.images]
    assert [float(row["score"]) for row in truth] == pytest.approx(
        closed_form_scores([synthetic_image(0, index) for index in range(60)]), abs=1e-6
    )


def test_the_ratings_file_does_not_hold_the_truth(tmp_path: Path) -> None:
    header = write_synthetic(tmp_path, section(), seed=0).read_text().splitlines()[0].split(",")
    assert not set(header) & {"finding", "degradation", "severity", "quality", "agrees", "score"}


def test_written_again_the_files_are_the_same_and_another_seed_gives_others(tmp_path: Path) -> None:
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_synthetic(tmp_path / folder, section(20), seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one")["ratings.csv"] != files(tmp_path / "three")["ratings.csv"]
    assert not any(name.endswith(".partial") for name in files(tmp_path / "one"))


def test_another_oracle_gives_other_ratings_of_the_same_images(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "one", section(20), seed=0)
    write_synthetic(tmp_path / "two", section(20), seed=0, oracle=lambda images: [0.0] * len(images))
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {name for name in one if one[name] != two[name]} == {"ratings.csv"}


def test_the_image_policy_leaves_synthetic_images_as_they_are(tmp_path: Path) -> None:
    path = write_synthetic(tmp_path, section(), seed=0)
    ratings = load_ratings(section(), [str(path)])
    stores = image_stores(section(), recipe.Images(disk_cache=False), [tmp_path])
    for index, image in enumerate(ratings.images[:10]):
        pixels = np.asarray(stores[image.modality].get(image.image))
        assert (pixels == synthetic_image(0, index).as_8_bit()[..., None]).all()


@pytest.fixture(scope="module")
def default_ratings(tmp_path_factory: pytest.TempPathFactory) -> Ratings:
    path = write_synthetic(tmp_path_factory.mktemp("synthetic"), section(600), seed=0)
    return load_ratings(section(600), [str(path)])


def test_the_default_dataset_has_all_levels_in_all_splits(default_ratings: Ratings) -> None:
    fractions = section().judge.fractions.by_split
    splits = partition(default_ratings, fractions, seed=0)
    assert require_all_levels(splits, ["selector", "judge"]) == ()
    for name, part in splits.items():
        assert part.count == pytest.approx(fractions[name] * default_ratings.count, rel=0.03)
        assert set(part.prompts) == set(PROMPTS)


def test_the_default_experts_agree_partly_and_precision_finds_their_order(default_ratings: Ratings) -> None:
    found = agreement(default_ratings)
    assert found.images == 600
    assert 0.3 < defined(found.low) < defined(found.alpha) < defined(found.high) < 0.9
    variances = expert_variances(default_ratings)
    assert variances[1] > variances[2] > variances[3]
    weights = expert_weights(section(expert_weight="precision"), default_ratings)
    assert weights[1] < weights[2] < weights[3] == 1.0


def test_a_recipe_without_synthetic_data_writes_none(tmp_path: Path) -> None:
    with raises(DataError, "imagegen.synthetic_section_missing"):
        write_synthetic(tmp_path, Imagegen(ratings=("a.csv",)), seed=0)
