"""Errors of the command for input that image generation cannot use: one clear error, exit code 1, and nothing lost."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.imagegen_models import prompts_dit_folder
from tests.helpers.imagegen_runs import LICENCE, RECIPE, SMALL, changes
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from tests.helpers.results import sft_result
from toolkit.cli import main
from toolkit.errors import DataError
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline
from toolkit.imagegen.ratings.prepare import prepare_ratings
from toolkit.imagegen.ratings.synthetic import write_synthetic
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.recipe import Recipe
from toolkit.runfolder import StopRequest, find_run, start_run
from toolkit.tasks import TASKS

STAGES = ("ratings", "scorers", "base", "control", "sft", "ddpo")
LONG = 'imagegen.prompts.CT=["CT: ' + " ".join(["lungs"] * 80) + '"]'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_dit_folder(tmp_path_factory.mktemp("dit") / "base")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    section = load_recipe(RECIPE, ["imagegen.synthetic.images=90"]).imagegen
    assert section is not None
    write_synthetic(folder, section, seed=1)
    return folder


def settings(folder: Path, base: Path, more: Sequence[str] = ()) -> list[str]:
    return [*SMALL, f"imagegen.generator.model={base}", "run.name=bad", f"run.folder={folder / 'runs'}", *more]


def file_settings(folder: Path, base: Path) -> list[str]:
    return [setting for setting in settings(folder, base) if "synthetic" not in setting]


def write_recipe(folder: Path, dataset: Path) -> Path:
    """The tiny recipe on files of ratings: those of a synthetic dataset."""
    shutil.copytree(dataset, folder / "data")
    text = RECIPE.read_text().split("[imagegen.synthetic]")
    rest = text[1][text[1].index("[imagegen.selector]") :]
    file = folder / "recipe.toml"
    file.write_text(text[0].replace("[imagegen]", '[imagegen]\nratings = ["data/ratings.csv"]') + rest)
    return file


def change_ratings(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    file = folder / "data" / "ratings.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *change(lines[1:])]) + "\n")


def column(lines: list[str], index: int, value: str, rows: int) -> list[str]:
    changed = [line.split(",") for line in lines]
    for cells in changed[:rows]:
        cells[index] = value
    return [",".join(cells) for cells in changed]


def error_of(capsys: pytest.CaptureFixture[str], recipe: Path, given: Sequence[str]) -> str:
    """Return the error that `toolkit run` prints before it exits with 1."""
    with pytest.raises(SystemExit) as exited:
        main(["run", str(recipe), *changes(given)])
    shown = capsys.readouterr().err
    assert exited.value.code == 1, shown
    assert "Traceback" not in shown
    assert shown.count("toolkit: ") == 1
    return shown[shown.index("toolkit: ") :]


def finished(folder: Path) -> list[str]:
    return [name for name in STAGES if (folder / "runs" / "bad" / "stages" / name / "done.json").is_file()]


def accepts(recipe: Recipe) -> int:
    """Start the run again as far as its ratings, and return the number of rated images."""
    with start_run(recipe) as run, StopRequest() as stop:
        return prepare_ratings(StageContext(recipe, run, stop))[1].images


UNUSABLE = "imagegen.too_many_rows_unusable"


@pytest.mark.parametrize(
    ("change", "code", "shown"),
    [
        (
            lambda lines: column(lines, 0, "images/none.png", 40),
            UNUSABLE,
            ("ratings.csv, row 1", "the image must exist"),
        ),
        (lambda lines: column(lines, 1, "9", 40), UNUSABLE, ("ratings.csv, row 1", "1, 2, 3", "'9'")),
        (lambda lines: column(lines, 2, "PET", 40), UNUSABLE, ("ratings.csv, row 1", "modality", "'PET'")),
        (
            lambda lines: [line for line in lines if line.split(",")[1] != "3"],
            "imagegen.training_levels_missing",
            ("train without 3",),
        ),
    ],
)
def test_ratings_that_cannot_be_used_end_the_command_and_corrected_ones_are_taken(
    tmp_path: Path,
    base: Path,
    dataset: Path,
    change: Callable[[list[str]], list[str]],
    code: str,
    shown: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, dataset)
    whole = (tmp_path / "data" / "ratings.csv").read_text()
    change_ratings(tmp_path, change)
    error = error_of(capsys, recipe, file_settings(tmp_path, base))
    assert all(part in error for part in (f"[{code}]", *shown)), error
    assert finished(tmp_path) == []
    loaded = load_recipe(recipe, file_settings(tmp_path, base), files=True)
    with raises(DataError, code):  # without the command's plan
        accepts(loaded)
    (tmp_path / "data" / "ratings.csv").write_text(whole)
    assert accepts(loaded) == 90


def test_an_image_that_cannot_be_read_ends_the_command_and_a_restored_one_is_taken(
    tmp_path: Path, base: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, dataset)
    image = tmp_path / "data" / "images" / "000003.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    error = error_of(capsys, recipe, file_settings(tmp_path, base))
    assert "ratings.csv, row 7" in error
    assert "[images.unusable]" in error
    assert finished(tmp_path) == []
    image.write_bytes(content)
    assert accepts(load_recipe(recipe, file_settings(tmp_path, base))) == 90


@pytest.mark.slow
def test_a_prompt_that_is_too_long_ends_the_command_and_a_shorter_one_is_taken(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "[imagegen.prompt_too_long]" in error_of(capsys, RECIPE, settings(tmp_path, base, [LONG]))
    save_tiny_pipeline(tmp_path / "sd")
    assert "[imagegen.prompt_too_long]" in error_of(
        capsys, RECIPE, settings(tmp_path, tmp_path / "sd", [LONG, LICENCE])
    )
    # Python's function has no plan, so that its run folder exists when the prompt is found.
    with raises(DataError, "imagegen.prompt_too_long"):
        run_imagegen(load_recipe(RECIPE, settings(tmp_path, base, [LONG])))
    assert finished(tmp_path) == []
    assert accepts(load_recipe(RECIPE, settings(tmp_path, base))) == 150
    assert (
        find_run(tmp_path / "runs" / "bad").recipe(TASKS).imagegen
        == load_recipe(RECIPE, settings(tmp_path, base)).imagegen
    )


def test_a_model_folder_with_pickles_only_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_pipeline(tmp_path / "sd")
    for file in (tmp_path / "sd").rglob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    error = error_of(capsys, RECIPE, settings(tmp_path, tmp_path / "sd", [LICENCE]))
    assert "[imagegen.generator] model: " in error
    assert "[imagegen.pipeline_pickled]" in error
    assert "unet" in error
    assert not (tmp_path / "runs" / "bad").exists()


@pytest.mark.slow
def test_a_selector_that_passes_nothing_ends_the_command_and_keeps_what_was_trained(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from toolkit.imagegen.training import sft_stage

    # A threshold passes some validation ratings, which are in the pool, so that no recipe makes this happen.
    monkeypatch.setattr(sft_stage, "passes", lambda scored, threshold: torch.zeros(len(scored.scores_N)).bool())
    error = error_of(capsys, RECIPE, settings(tmp_path, base))
    assert "imagegen.selector.target_precision: " in error
    assert "[imagegen.no_image_passes]" in error
    assert finished(tmp_path) == ["ratings", "scorers", "base"]
    monkeypatch.undo()
    done = tmp_path / "runs" / "bad" / "stages" / "scorers" / "done.json"
    before = done.read_bytes()
    run_imagegen(load_recipe(RECIPE, settings(tmp_path, base)))  # resumes with the scorers of the first start
    assert done.read_bytes() == before
    assert finished(tmp_path) == list(STAGES)


def test_a_finished_stage_binds_the_run_to_its_recipe(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_run(load_recipe(RECIPE, settings(tmp_path, base))) as run:
        run.mark_done("ratings", sft_result())
    error = error_of(capsys, RECIPE, settings(tmp_path, base, ["imagegen.selector.target_precision=0.2"]))
    assert "imagegen.selector.target_precision: 0.1 -> 0.2" in error
    assert "--fresh" in error
