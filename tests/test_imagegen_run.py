"""A recipe with [imagegen] from ratings to the table: resume after SIGKILL, bad input, and Stable Diffusion's path."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from imagegen_models import random_dit_folder
from imagegen_runs import RECIPE, SMALL, numbers, results

from toolkit.cli.predict import Which
from toolkit.errors import DataError, ImageError, ModelError, RecipeError, ToolkitError, TrainingError
from toolkit.imagegen.dit import DitConfig, split_words
from toolkit.imagegen.rating_stage import prepare_ratings, unweighted
from toolkit.imagegen.synthetic_images import PROMPTS
from toolkit.imagegen.tiny_pipeline import save_tiny_pipeline
from toolkit.imagegen.workplace import Workplace
from toolkit.pipeline.again import evaluate_again, export_again
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.pipeline.imagegen_dry_run import dry_run_imagegen
from toolkit.pipeline.stages import STAGES as STAGES_OF_LANGUAGE_MODELS
from toolkit.recipe import Recipe, load_recipe
from toolkit.run import StopRequest, start_run

LICENCE = "imagegen.generator.licence=creativeml-openrail-m"
STAGES = ("ratings", "scorers", "base", "control", "sft", "ddpo")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DiT that knows the synthetic prompts."""
    prompts = [prompt for findings in PROMPTS.values() for prompt in findings.values()]
    words = tuple(sorted({word for prompt in prompts for word in split_words(prompt)}))
    config = DitConfig(words, width=32, layers=1, heads=2)
    return random_dit_folder(tmp_path_factory.mktemp("dit") / "base", config)


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
    from toolkit.imagegen import arm, scorer_stage, stages

    left = [calls]

    def lethal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = function(*args, **kwargs)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return given

        return call

    for module in (arm, scorer_stage, stages):
        if hasattr(module, name):
            setattr(module, name, lethal(getattr(module, name)))


def test_a_run_killed_in_every_stage_ends_with_the_table_of_an_undisturbed_one(tmp_path: Path, base: Path) -> None:
    run_imagegen(recipe(tmp_path, base, "whole"))
    killed = recipe(tmp_path, base, "killed")
    # Epoch 1 of stage 1; the judge; the end of stage 1; the base; then the first round of each arm, and the last one.
    deaths = [("save_epoch", 1), ("save_tensors", 1), ("keep", 1), ("keep", 1), *[("save_epoch", 1)] * 3]
    for dies in deaths:
        assert run_until_death(killed, dies) == -signal.SIGKILL
    assert run_until_death(killed, ("save_epoch", 2)) in (-signal.SIGKILL, 0)
    run_imagegen(killed)
    undisturbed, resumed = results(tmp_path, "whole"), results(tmp_path, "killed")
    assert numbers(resumed) == pytest.approx(numbers(undisturbed), abs=1e-6)
    assert [row["arm"] for row in resumed["rows"]] == ["base", "control", "sft", "ddpo"]
    assert_checkpoints_follow_the_layout(tmp_path / "runs" / "killed" / "checkpoints")


def assert_checkpoints_follow_the_layout(folder: Path) -> None:
    (timestamp,) = folder.iterdir()
    epochs = sorted(int(path.name.removeprefix("epoch_")) for path in timestamp.iterdir())
    assert epochs == [7, 8]  # two epochs of stage 1, two rounds of each arm, and keep_checkpoints = 2
    names = {path.name for path in (timestamp / "epoch_8").iterdir()}
    assert names >= {"policy_checkpoint.pt", "selector_checkpoint.pt", "synthetic_checkpoint.pt"}
    assert "pytorch_lora_weights.safetensors" in names
    for name in names - {"pytorch_lora_weights.safetensors"}:
        assert torch.load(timestamp / "epoch_8" / name, weights_only=True)["epoch"] == 8


def test_a_finished_run_is_not_run_again_and_gives_the_same_table(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recipe(tmp_path, base, "once", ['imagegen.update.methods=["sft"]', "imagegen.update.control=false"])
    _, first = run_imagegen(small)
    monkeypatch.setattr("toolkit.imagegen.stages.run_stage", None)
    _, second = run_imagegen(small)
    assert second == first
    assert [row.arm for row in second.rows] == ["base", "sft"]


def test_commands_that_do_not_know_image_generators_say_so(tmp_path: Path, base: Path) -> None:
    small = recipe(tmp_path, base, "other", ['imagegen.prompts.CT=["CT: unknownword"]'])
    with pytest.raises(DataError):
        run_imagegen(small)  # leaves a run folder
    run = tmp_path / "runs" / "other"
    for again in (evaluate_again, export_again):
        with pytest.raises(RecipeError, match="vision-language"):
            again(run, STAGES_OF_LANGUAGE_MODELS)
    with pytest.raises(RecipeError, match="toolkit predict"):
        Which(run).ready()


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
    assert run.name == "minim_rlhf.rehearsal"
    assert [row.arm for row in result.rows] == ["base", "control", "sft", "ddpo"]


def ratings_recipe(folder: Path, base: Path, source: Path, change: Callable[[list[str]], list[str]]) -> Recipe:
    """The recipe on files of ratings: those of a synthetic dataset, changed."""
    data = folder / "data"
    shutil.copytree(source, data)
    lines = (data / "ratings.csv").read_text().splitlines()
    (data / "ratings.csv").write_text("\n".join([lines[0], *change(lines[1:])]) + "\n")
    text = RECIPE.read_text().split("[imagegen.synthetic]")
    rest = text[1][text[1].index("[imagegen.selector]") :]
    file = folder / "recipe.toml"
    file.write_text(text[0].replace("[imagegen]", '[imagegen]\nratings = ["data/ratings.csv"]') + rest)
    own = [setting for setting in SMALL if "synthetic" not in setting]
    names = [f"imagegen.generator.model={base}", "run.name=bad", f"run.folder={folder / 'runs'}"]
    return load_recipe(file, [*own, *names], files=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    from toolkit.imagegen.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("synthetic")
    section = recipe(folder, base, "x", ["imagegen.synthetic.images=90"]).imagegen
    assert section is not None
    write_synthetic(folder, section, seed=1)
    return folder


def column(lines: list[str], index: int, value: str, rows: int) -> list[str]:
    changed = [line.split(",") for line in lines]
    for cells in changed[:rows]:
        cells[index] = value
    return [",".join(cells) for cells in changed]


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (lambda lines: column(lines, 0, "images/none.png", 40), DataError, "images/none.png"),
        (lambda lines: column(lines, 1, "9", 40), DataError, "rating must be one of 1, 2, 3"),
        (lambda lines: column(lines, 2, "PET", 40), DataError, "modality must be one of"),
        (lambda lines: [line for line in lines if line.split(",")[1] != "3"], DataError, "no rating 3"),
    ],
)
def test_ratings_that_cannot_be_used_give_one_clear_error_before_training(
    tmp_path: Path,
    base: Path,
    dataset: Path,
    change: Callable[[list[str]], list[str]],
    kind: type[ToolkitError],
    named: str,
) -> None:
    broken = ratings_recipe(tmp_path, base, dataset, change)
    with pytest.raises(kind, match=named) as caught:
        run_imagegen(broken)
    assert caught.value.remedy
    assert not (tmp_path / "runs" / "bad" / "stages" / "scorers").exists()


def test_an_image_that_cannot_be_read_is_an_error_before_training(tmp_path: Path, base: Path, dataset: Path) -> None:
    broken = ratings_recipe(tmp_path, base, dataset, lambda lines: lines)
    (tmp_path / "data" / "images" / "000003.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"000003\.png"):
        run_imagegen(broken)


def test_prompts_that_are_too_long_or_unknown_are_an_error_before_training(tmp_path: Path, base: Path) -> None:
    long = " ".join(["lungs"] * 40)
    with pytest.raises(DataError, match="words"):
        run_imagegen(recipe(tmp_path, base, "long", [f'imagegen.prompts.CT=["CT: {long}"]']))
    save_tiny_pipeline(tmp_path / "sd")
    with pytest.raises(DataError, match="tokens"):
        run_imagegen(recipe(tmp_path, tmp_path / "sd", "tokens", [f'imagegen.prompts.CT=["CT: {long}"]', LICENCE]))
    assert not list((tmp_path / "runs").glob("*/stages/scorers"))


def test_a_folder_with_pickles_only_is_an_error_before_training(tmp_path: Path) -> None:
    save_tiny_pipeline(tmp_path / "sd")
    for file in (tmp_path / "sd").rglob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(ModelError, match="safetensors"):
        run_imagegen(recipe(tmp_path, tmp_path / "sd", "pickles", [LICENCE]))


def test_a_selector_that_passes_nothing_is_an_error_that_keeps_what_was_trained(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.imagegen import sft_stage

    monkeypatch.setattr(sft_stage, "passes", lambda scored, threshold: torch.zeros(len(scored.scores_N)).bool())
    strict = recipe(tmp_path, base, "strict")
    with pytest.raises(TrainingError, match="at least one image that the selector passes"):
        run_imagegen(strict)
    monkeypatch.undo()
    before = (tmp_path / "runs" / "strict" / "stages" / "scorers" / "done.json").read_bytes()
    run_imagegen(strict)  # goes on, with the scorers of the first start
    assert (tmp_path / "runs" / "strict" / "stages" / "scorers" / "done.json").read_bytes() == before
    assert all((tmp_path / "runs" / "strict" / "stages" / name / "done.json").is_file() for name in STAGES)


def test_a_refresh_between_rounds_says_whether_it_was_kept_or_rolled_back(tmp_path: Path, base: Path) -> None:
    more = ['imagegen.update.methods=["ddpo"]', "imagegen.update.control=false", "imagegen.update.refresh.enabled=true"]
    _, found = run_imagegen(recipe(tmp_path, base, "refreshed", [*more, "imagegen.selector.target_precision=0.01"]))
    assert found.ddpo is not None
    outcomes = [outcome for one in found.ddpo.rounds for outcome in one.refreshed]
    assert outcomes
    for outcome in outcomes:
        if outcome.kept:
            assert outcome.before.value is not None
            assert outcome.after.value is not None
            assert outcome.after.value >= outcome.before.value


def test_ratings_of_weight_0_are_reported_and_a_level_without_a_weight_is_an_error(tmp_path: Path, base: Path) -> None:
    more = ['imagegen.expert_weight="table"', "imagegen.expert_table={ 1 = 0.0, 2 = 0.5, 3 = 1.0 }"]
    wanted = recipe(tmp_path, base, "unweighted", more)
    with start_run(wanted) as run, StopRequest() as stop:
        prepared, found = prepare_ratings(Workplace(wanted, run, stop))
    count = sum(rating.expert_level == 1 for _, rating in prepared.ratings.pairs)
    assert count > 0
    assert any(f"{count:,} ratings of expert level 1" in warning for warning in found.warnings)
    with pytest.raises(DataError) as raised:
        unweighted(prepared.ratings, {2: 0.5, 3: 1.0})
    assert raised.value.value == {1: count}
