"""Runs with several seeds: what differs between them, their mean and interval, resume, and what is rejected."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import toolkit
from tests.helpers.cli import call
from tests.helpers.preferences import dpo_recipe
from tests.helpers.problems import raises
from tests.helpers.results import evaluation_result
from tests.helpers.training import adapter_of, same
from tests.test_pipeline import FakeStages, make_recipe
from toolkit.errors import Interrupted, RecipeError, RunError, ToolkitError, TrainingError
from toolkit.evaluation.results import EvaluationResult
from toolkit.evaluation.stage_context import Context
from toolkit.pipeline import RunResults, run_recipe
from toolkit.pipeline.seeds import SeedsResult, cells, parse_seeds, run_seeds, seed_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe, dump_recipe
from toolkit.runfolder import from_json, read_json
from toolkit.scoring.statistics import t_interval

SCORES = {1: 0.60, 2: 0.70, 3: 0.65}
"""Seed of the training -> score after SFT. GRPO adds 0.1."""


@dataclass
class SeededStages(FakeStages):
    """Stages whose scores depend on the seed of the training."""

    seeds: list[int] = field(default_factory=list)

    def evaluate(self, context: Context, name: str, weights: Path | None, earlier: Sequence[str]) -> EvaluationResult:
        seed = context.recipe.run.seed_of_training
        scores = {"before": 0.2, "sft": SCORES[seed], "grpo": SCORES[seed] + 0.1, "baseline": 0.25}
        if name == "before":
            self.seeds.append(seed)
        return evaluation_result(
            name, scores[name], scores["baseline"], {other: scores[other] for other in ("baseline", *earlier)}
        )

    def run(self, recipe: Recipe) -> RunResults:
        return run_recipe(recipe, self.table())


def test_each_seed_is_a_run_and_the_mean_has_the_t_interval_of_a_textbook(tmp_path: Path) -> None:
    stages = SeededStages()
    result = run_seeds(make_recipe(tmp_path), (1, 2, 3), stages.run)
    assert stages.seeds == [1, 2, 3]
    assert result.runs == ("one-seed-1", "one-seed-2", "one-seed-3")
    (rows,) = result.tables.values()
    assert [row.label for row in rows] == ["majority baseline", "before", "after SFT", "after GRPO"]
    sft = rows[2]
    assert [one.value for one in sft.values] == [0.60, 0.70, 0.65]
    assert sft.mean is not None
    # The half width is t(0.975, 2) * s / sqrt(3) = 4.3027 * 0.05 / 1.7321.
    assert sft.mean.value == pytest.approx(0.65)
    assert sft.mean.n == 3
    assert sft.mean.low == pytest.approx(0.65 - 4.302653 * 0.05 / 3**0.5, abs=1e-6)
    assert sft.mean.high == pytest.approx(0.65 + 4.302653 * 0.05 / 3**0.5, abs=1e-6)
    assert [one.difference.value for one in sft.to_before] == pytest.approx([0.4, 0.5, 0.45])
    assert sft.mean_to_before is not None
    assert sft.mean_to_before.value == pytest.approx(0.45)
    assert sft.to_above == sft.to_before
    grpo = rows[3]
    assert [one.difference.value for one in grpo.to_above] == pytest.approx([0.1, 0.1, 0.1])
    assert grpo.mean_to_above is not None
    assert grpo.mean_to_above.value == pytest.approx(0.1)
    assert cells(grpo)[1] == "70.0 % (+10.0)"
    # What no seed changes has no interval over seeds.
    assert [row.mean for row in rows[:2]] == [None, None]
    assert cells(sft)[1] == "60.0 % (+40.0)"


def test_the_interval_is_that_of_scipy() -> None:
    values = [0.61, 0.58, 0.7, 0.66, 0.63]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=found.value, scale=stats.sem(values))
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    with pytest.raises(ValueError, match="two"):
        t_interval([0.5])


def test_the_summary_is_written_and_can_be_read(tmp_path: Path) -> None:
    result = run_seeds(make_recipe(tmp_path), (1, 2), SeededStages().run)
    folder = tmp_path / "runs" / "one-seeds"
    assert from_json(SeedsResult, {**read_json(folder / "summary.json"), "folder": result.folder}) == result
    text = (folder / "summary.md").read_text(encoding="utf-8")
    assert "| seed 1 | seed 2 | mean of 2 seeds |" in text
    assert "| after SFT | 60.0 % (+40.0) | 70.0 % (+50.0) | 65.0 % [" in text
    assert sorted(file.name for file in folder.iterdir()) == ["summary.json", "summary.md"]


def test_only_the_seed_of_the_training_differs_between_the_runs(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    one, other = (seed_recipe(recipe, seed) for seed in (1, 2))
    assert (one.run.seed, one.run.seed_of_training, other.run.seed_of_training) == (recipe.run.seed, 1, 2)
    equal = {"run": {"name": True, "training_seed": True}}
    assert one.model_dump(exclude=equal) == other.model_dump(exclude=equal) == recipe.model_dump(exclude=equal)
    assert recipe.run.seed_of_training == recipe.run.seed


def test_a_killed_sequence_resumes_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    recipe, stages = make_recipe(tmp_path), SeededStages()

    def killed(one: Recipe) -> RunResults:
        if one.run.seed_of_training == 2:
            raise Interrupted(15, "sft is saved after step 1")
        return stages.run(one)

    with pytest.raises(Interrupted):
        run_seeds(recipe, (1, 2, 3), killed)
    assert not (tmp_path / "runs" / "one-seeds").exists()
    trained = len([call for call in stages.calls if call[0] == "sft"])
    result = run_seeds(recipe, (1, 2, 3), stages.run)
    assert len([call for call in stages.calls if call[0] == "sft"]) == trained + 2
    assert result == run_seeds(recipe, (1, 2, 3), stages.run)


def test_an_older_run_of_another_recipe_is_rejected_before_any_training(tmp_path: Path) -> None:
    stages = SeededStages()
    stages.run(seed_recipe(make_recipe(tmp_path, "sft.epochs=2"), 3))
    before = len(stages.calls)
    with raises(RunError, "run.recipe_changed") as caught:
        run_seeds(make_recipe(tmp_path), (1, 2, 3), stages.run)
    assert str(caught.problem.place).endswith("one-seed-3")
    assert len(stages.calls) == before
    run_seeds(make_recipe(tmp_path), (1, 2), stages.run)


def test_runs_with_other_data_have_no_common_summary(tmp_path: Path) -> None:
    recipe, stages = make_recipe(tmp_path), SeededStages()
    stages.run(seed_recipe(recipe, 1))
    stages.fingerprint = "def"
    with raises(RunError, "run.inputs_changed"):
        run_seeds(recipe, (1, 2), lambda one: replace(stages.run(one)))


def test_files_of_the_user_in_the_folder_of_the_summary_stay(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one-seeds"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with raises(RunError, "run.folder_of_other_files"):
        run_seeds(make_recipe(tmp_path), (1, 2), SeededStages().run)


@pytest.mark.parametrize("text", ["", "0", "1", "101", "x", "1,1", "3,", "-1,2", "1,2147483648", "1;2", "1.5"])
def test_seeds_that_are_none_are_rejected(text: str) -> None:
    with raises(RunError, "run.seeds_invalid"):
        parse_seeds(text)


def test_seeds_are_a_number_or_a_list() -> None:
    assert parse_seeds("4") == (1, 2, 3, 4)
    assert parse_seeds("11, 7") == (11, 7)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (["evaluate=null"], "recipe.section_missing"),
        (["run.training_seed=4"], "recipe.training_seed_set"),
        ([f"run.name={'x' * 90}"], "recipe.run_name_too_long"),
    ],
)
def test_a_recipe_that_cannot_be_repeated_is_rejected(tmp_path: Path, settings: list[str], code: str) -> None:
    recipe = make_recipe(tmp_path, *[one for one in settings if not one.endswith("=null")])
    if "evaluate=null" in settings:
        recipe = recipe.model_copy(update={"evaluate": None})
    with raises(RecipeError, code):
        run_seeds(recipe, (1, 2), SeededStages().run)


def test_a_failed_seed_ends_the_sequence(tmp_path: Path) -> None:
    stages = SeededStages(fail={"sft": TrainingError("training.loss_not_finite", "loss must be finite")})
    with raises(TrainingError, "training.loss_not_finite"):
        run_seeds(make_recipe(tmp_path), (1, 2), stages.run)


def test_a_dry_run_has_no_seeds(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    with pytest.raises(ToolkitError, match="dry_run"):
        toolkit.run(tmp_path / "recipe.toml", seeds=2, dry_run=True)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_and_another_seed_another_one(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "evaluate": {"batch_size": 6, "max_completion_tokens": 8, "bootstrap": 100, "limit": 6},
        "dpo": {"max_steps": 2},
    }
    recipe = dpo_recipe(tmp_path, "repeated", tables)
    file = tmp_path / "repeated.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    result = toolkit.run(file, seeds=(5, 6))
    assert isinstance(result, SeedsResult)
    five, six = (adapter_of(seed_recipe(recipe, seed), "dpo") for seed in (5, 6))
    assert not same(five, six)
    alone = recipe.model_copy(
        update={"run": recipe.run.model_copy(update={"name": "alone", "training_seed": 5}), "evaluate": None}
    )
    run_recipe(alone, STAGES)
    assert same(adapter_of(alone, "dpo"), five)
    # The evaluated samples are the same, and so is the evaluation before training.
    before = next(row for row in result.tables["score"] if row.label == "before")
    assert before.values[0] == before.values[1]
    assert before.mean is None
    answered = [
        [line["id"] for line in read_lines_of(tmp_path, name)] for name in ("repeated-seed-5", "repeated-seed-6")
    ]
    assert answered[0] == answered[1]


def read_lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    from toolkit.runfolder import read_lines

    return read_lines(folder / "runs" / name / "stages" / "evaluate-dpo" / "predictions.jsonl")


def test_the_command_names_the_option_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_recipe(tmp_path)
    assert call(["run", str(tmp_path / "recipe.toml"), "--seeds", "2", "--dry-run"]) == 2
    assert "--seeds" in capsys.readouterr().err
