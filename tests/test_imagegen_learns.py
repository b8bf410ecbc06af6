"""A shortened run of the tiny recipe, with the shipped base: sft beats its control, and ddpo beats the base."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.imagegen_runs import RECIPE
from tests.helpers.recipes import load_recipe
from toolkit.imagegen.results import ImagegenResult
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.scoring.statistics import Paired

pytestmark = pytest.mark.slow

SHORT = (
    "imagegen.synthetic.images=500",
    "imagegen.selector.epochs=10",
    "imagegen.policy.epochs=8",
    "imagegen.judge.epochs=10",
    "imagegen.judge.images=120",
    "imagegen.judge.features=16",
    "imagegen.judge.bootstrap=500",
    "imagegen.generator.steps=8",
    "imagegen.update.sft_steps=80",
    "imagegen.update.sft_batch_size=32",
    "imagegen.update.rounds=4",
    "run.checkpoint_steps=80",
)
"""Changes of the tiny recipe for half a minute of one core."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImagegenResult]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("learns")
    _, found = run_imagegen(load_recipe(RECIPE, [*SHORT, f'run.folder="{folder}"']))
    yield found
    torch.set_num_threads(before)


def low(paired: Paired | None) -> float:
    assert paired is not None
    assert paired.difference.low is not None
    return paired.difference.low


@pytest.mark.slow
def test_sft_is_better_than_the_same_number_of_random_images(result: ImagegenResult) -> None:
    assert low(result.row("sft").to_control) > 0


def test_ddpo_is_better_than_the_base(result: ImagegenResult) -> None:
    assert low(result.row("ddpo").to_base) > 0


def test_no_method_collapses(result: ImagegenResult) -> None:
    assert result.real_diversity is not None
    real = result.real_diversity.distance.value
    assert real is not None
    for row in result.rows:
        assert row.diversity.distance.value is not None
        assert row.diversity.distance.value > 0.6 * real, row.arm


def test_the_scorers_agree_with_held_out_ratings_and_the_ratios_begin_at_one(result: ImagegenResult) -> None:
    assert result.scorers is not None
    assert result.ddpo is not None
    for metrics in (result.scorers.selector, result.scorers.judge):
        assert metrics.overall.spearman.estimate.low is not None
        assert metrics.overall.spearman.estimate.low > 0.2
    assert all(one.update.first_ratio_deviation < 1e-4 for one in result.ddpo.rounds if one.update)
    assert all(row.oracle is not None for row in result.rows)


def test_the_shipped_files_are_small() -> None:
    folder = Path(__file__).resolve().parents[1] / "toolkit" / "imagegen"
    files = [folder / "ratings" / "oracle.safetensors", *(folder / "tiny_base").iterdir()]
    assert sum(file.stat().st_size for file in files) < 5e6
