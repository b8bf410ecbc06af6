"""A recipe with [imagegen] from ratings to the table: resume after SIGKILL, bad input, and Stable Diffusion's path."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.imagegen_models import prompts_dit_folder
from tests.helpers.imagegen_runs import LICENCE, RECIPE, SMALL, numbers, results
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import DataError, RecipeError
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline
from toolkit.imagegen.ratings.prepare import prepare_ratings, unweighted
from toolkit.imagegen.results import ImagegenResult
from toolkit.imagegen.stages import RunSession
from toolkit.imagegen.training.sft_stage import SftResult
from toolkit.pipeline.existing_run import evaluate_again, export_again, open_for_inference
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.pipeline.imagegen_dry_run import dry_run_imagegen
from toolkit.pipeline.stages import STAGES as STAGES_OF_LANGUAGE_MODELS
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, StopRequest, find_run, from_json, start_run
from toolkit.runfolder.manifest import digest_file

pytestmark = pytest.mark.slow

STAGES = ("ratings", "scorers", "base", "control", "sft", "ddpo")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_dit_folder(tmp_path_factory.mktemp("dit") / "base")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The folder of an undisturbed run named whole, with a tracker."""
    folder = tmp_path_factory.mktemp("whole")
    run_imagegen(recipe(folder, base, "whole", ['run.report_to=["tensorboard"]']))
    return folder


def recipe(folder: Path, base: Path, name: str, more: Sequence[str] = ()) -> Recipe:
    settings = [*SMALL, f"imagegen.generator.model={base}", f"run.name={name}", f"run.folder={folder / 'runs'}"]
    return load_recipe(RECIPE, [*settings, *more])


def run_until_death(wanted: Recipe, dies: tuple[str, int] | None) -> int:
    """Run in a process of its own, which is killed when a save has returned; gives its exit code."""
    child = multiprocessing.get_context("fork").Process(target=_run, args=(wanted, dies))
    child.start()
    child.join(300)
    assert child.exitcode is not None
    return child.exitcode


def _run(wanted: Recipe, dies: tuple[str, int] | None) -> None:
    if dies is not None:
        _arm(*dies)
    run_imagegen(wanted)


def _arm(name: str, calls: int) -> None:
    """Kill this process when the saving function ``name`` returns for the last of ``calls`` times."""
    from toolkit.imagegen.scorers import train_scorers
    from toolkit.imagegen.training import arm

    left = [calls]

    def lethal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = function(*args, **kwargs)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return given

        return call

    for module in (arm, train_scorers, RunFolder):
        if hasattr(module, name):
            setattr(module, name, lethal(getattr(module, name)))


def test_a_run_killed_in_every_stage_ends_with_the_table_of_an_undisturbed_one(
    tmp_path: Path, base: Path, whole: Path
) -> None:
    killed = recipe(tmp_path, base, "killed")
    # Epoch 1 of stage 1; the judge; the end of stage 1; the base; then the first round of each arm, and the last one.
    # After "log_metrics", an epoch or a round has its metrics, but is not saved.
    deaths = [("log_metrics", 1), ("save_epoch", 1), ("log_metrics", 2), ("save_tensors", 1)]
    deaths += [("mark_done", 1), ("log_metrics", 1), ("mark_done", 1), *[("save_epoch", 1)] * 3, ("log_metrics", 1)]
    for dies in deaths:
        assert run_until_death(killed, dies) == -signal.SIGKILL
    assert run_until_death(killed, ("save_epoch", 2)) in (-signal.SIGKILL, 0)
    run_imagegen(killed)
    undisturbed, resumed = results(whole, "whole"), results(tmp_path, "killed")
    assert numbers(resumed) == numbers(undisturbed)
    assert metrics(tmp_path / "runs" / "killed") == metrics(whole / "runs" / "whole")
    assert trained_files(tmp_path / "runs" / "killed") == trained_files(whole / "runs" / "whole")
    assert [row["arm"] for row in resumed["rows"]] == ["base", "control", "sft", "ddpo"]
    assert_checkpoints_follow_the_layout(tmp_path / "runs" / "killed" / "checkpoints")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def trained_files(run: Path) -> dict[str, str]:
    """Digests of the LoRAs and of the newest checkpoint. The name of its folder has the time."""
    (timestamp,) = (run / "checkpoints").iterdir()
    files = [*run.glob("stages/*/weights/*.safetensors"), *(timestamp / "epoch_8").iterdir()]
    return {"/".join(file.parts[-3:]).replace(timestamp.name, "TIME"): digest_file(file).sha256 for file in files}


def assert_checkpoints_follow_the_layout(folder: Path) -> None:
    (timestamp,) = folder.iterdir()
    epochs = sorted(int(path.name.removeprefix("epoch_")) for path in timestamp.iterdir())
    assert epochs == [7, 8]  # two epochs of stage 1, two rounds of each arm, and keep_checkpoints = 2
    names = {path.name for path in (timestamp / "epoch_8").iterdir()}
    assert names >= {"policy_checkpoint.pt", "selector_checkpoint.pt", "synthetic_checkpoint.pt"}
    assert "pytorch_lora_weights.safetensors" in names
    for name in names - {"pytorch_lora_weights.safetensors", "manifest.json"}:
        assert torch.load(timestamp / "epoch_8" / name, weights_only=True)["epoch"] == 8


def test_a_finished_run_is_not_run_again_and_gives_the_same_table(
    base: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results(whole, "whole")
    monkeypatch.setattr("toolkit.imagegen.stages.run_stage", None)
    _, again = run_imagegen(recipe(whole, base, "whole"))
    assert results(whole, "whole") == before
    assert [row.arm for row in again.rows] == ["base", "control", "sft", "ddpo"]


def test_results_json_has_the_returned_results(whole: Path, base: Path) -> None:
    _, returned = run_imagegen(recipe(whole, base, "whole"))
    assert from_json(ImagegenResult, results(whole, "whole")) == returned


def test_losses_pass_rates_learning_rates_and_scores_arrive_in_tensorboard(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    run = find_run(whole / "runs" / "whole")
    (file,) = (run.path / "tensorboard").iterdir()
    events = EventAccumulator(str(file))
    events.Reload()
    arrived = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    logged = {
        (f"{line['stage']}/{name}", line["step"]): value
        for line in run.metrics()
        for name, value in line.items()
        if name not in ("stage", "step", "time")
    }
    assert arrived == {key: pytest.approx(value, rel=1e-6) for key, value in logged.items()}
    losses = {f"scorers/{name}_{what}" for name in ("selector", "policy") for what in ("loss", "learning_rate")}
    passes = {"sft/pass_rate", "ddpo/pass_rate", *(f"table/{arm}_judge_pass_rate" for arm in STAGES[2:])}
    others = {"judge/loss", "control/loss", "sft/learning_rate", "ddpo/learning_rate", "ddpo/judge", "table/ddpo_judge"}
    assert {tag for tag, _ in arrived} >= losses | passes | others


def test_commands_for_language_models_reject_runs_of_image_generators(tmp_path: Path, base: Path) -> None:
    small = recipe(tmp_path, base, "other", ['imagegen.prompts.CT=["CT: unknownword"]'])
    with raises(DataError, "imagegen.prompt_word_unknown"):
        run_imagegen(small)  # leaves a run folder
    run = tmp_path / "runs" / "other"
    for again in (evaluate_again, export_again):
        with raises(RecipeError, "recipe.not_vision_language"):
            again(run, STAGES_OF_LANGUAGE_MODELS)
    with raises(RecipeError, "recipe.not_vision_language") as caught:
        open_for_inference(run, None)
    assert "toolkit predict" in caught.problem.rule


def test_stable_diffusions_path_runs_end_to_end_on_a_tiny_random_pipeline(tmp_path: Path) -> None:
    save_tiny_pipeline(tmp_path / "sd")
    settings = [
        "imagegen.generator.guidance_scale=2.0",
        "imagegen.update.clip_range=0.01",
        "imagegen.update.rounds=1",
        LICENCE,
    ]
    _, result = run_imagegen(recipe(tmp_path, tmp_path / "sd", "sd", settings))
    assert [row.arm for row in result.rows] == ["base", "control", "sft", "ddpo"]
    assert result.ddpo is not None
    assert max(one.update.first_ratio_deviation for one in result.ddpo.rounds if one.update) < 1e-3
    weights = tmp_path / "runs" / "sd" / "stages" / "sft" / "weights" / "pytorch_lora_weights.safetensors"
    assert weights.is_file()


def test_the_dry_run_of_a_recipe_for_a_gpu_runs_every_stage_without_its_models_and_ratings(tmp_path: Path) -> None:
    real = load_recipe(RECIPE.parent / "minim_rlhf.toml", [f"run.folder={tmp_path / 'runs'}"])
    run, result = dry_run_imagegen(real)
    assert run.name == "minim_rlhf.dry-run"
    assert [row.arm for row in result.rows] == ["base", "control", "sft", "ddpo"]


def test_no_method_trains_on_an_image_that_an_evaluation_knows(tmp_path: Path, base: Path) -> None:
    small = recipe(tmp_path, base, "apart", ['imagegen.update.methods=["sft"]'])
    run_imagegen(small)
    with start_run(small) as run, StopRequest() as stop:
        session = RunSession(StageContext(small, run, stop))
        splits = session.prepared.splits
        own = [image for name in ("train", "validation") for image in splits[name].images]
        others = {image.group for name in ("judge_train", "judge_validation", "test") for image in splits[name].images}
        assert session.prepared.images(own).dtype == torch.uint8
        reference = session.arm_context.reference
        assert set(reference.features.groups) <= others
        assert reference.training.groups == tuple(image.group for image in own)
        assert not others & set(reference.training.groups)
        assert run.result("sft", SftResult).pool == run.result("control", SftResult).pool == len(own)


def test_a_kept_refresh_chooses_the_threshold_again(tmp_path: Path, base: Path) -> None:
    # The learning rate is so small that agreement stays as it is, and the refresh is kept.
    more = ['imagegen.update.methods=["ddpo"]', "imagegen.update.control=false", "imagegen.update.refresh.enabled=true"]
    more += ["imagegen.selector.target_precision=0.01", "imagegen.update.refresh.learning_rate=1e-12"]
    _, found = run_imagegen(recipe(tmp_path, base, "kept", more))
    assert found.ddpo is not None
    assert found.scorers is not None
    first = found.scorers.selector_threshold.value
    rounds = found.ddpo.rounds[1:]
    assert [one.refreshed[0].kept for one in rounds] == [True, True]
    assert [one.threshold for one in rounds] == pytest.approx([first, first], abs=1e-4)


def test_a_refresh_between_rounds_records_whether_it_was_kept_or_rolled_back(tmp_path: Path, base: Path) -> None:
    more = ['imagegen.update.methods=["ddpo"]', "imagegen.update.control=false", "imagegen.update.refresh.enabled=true"]
    _, found = run_imagegen(recipe(tmp_path, base, "refreshed", [*more, "imagegen.selector.target_precision=0.01"]))
    assert [row.arm for row in found.rows] == ["base", "ddpo"]
    assert found.ddpo is not None
    outcomes = [outcome for one in found.ddpo.rounds for outcome in one.refreshed]
    assert outcomes
    for one in found.ddpo.rounds:
        assert (one.threshold is not None) == bool(one.refreshed and one.refreshed[0].kept)
    for outcome in outcomes:
        if outcome.kept:
            assert outcome.before.value is not None
            assert outcome.after.value is not None
            assert outcome.after.value >= outcome.before.value


def test_ratings_of_weight_0_are_reported_and_a_level_without_a_weight_is_an_error(tmp_path: Path, base: Path) -> None:
    more = ['imagegen.expert_weight="table"', "imagegen.expert_table={ 1 = 0.0, 2 = 0.5, 3 = 1.0 }"]
    wanted = recipe(tmp_path, base, "unweighted", more)
    with start_run(wanted) as run, StopRequest() as stop:
        prepared, found = prepare_ratings(StageContext(wanted, run, stop))
    count = sum(rating.expert_level == 1 for _, rating in prepared.ratings.pairs)
    assert count > 0
    (notice,) = (one for one in prepared.notices if one.code == "imagegen.ratings_of_weight_zero")
    assert notice.value == f"{count:,} of level 1"
    assert str(notice) in found.warnings
    with raises(DataError, "imagegen.expert_levels_missing") as raised:
        unweighted(prepared.ratings, {2: 0.5, 3: 1.0})
    assert raised.problem.value == {1: count}
