"""The report of an image generator: kept samples, and the grid of images by prompt and round."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.imagegen_runs import RECIPE, SMALL
from tests.helpers.recipes import load_recipe
from toolkit.imagegen.results import LABELS
from toolkit.imagegen.samples import MOST, read_samples, save_samples
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.reporting.blocks import ImageGrid, Plots, Section
from toolkit.reporting.report import ReportOptions, build_report
from toolkit.runfolder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("imagegen")
    recipe = load_recipe(RECIPE, [*SMALL, f"run.folder='{folder}'", "run.name=small"])
    return run_imagegen(recipe, fresh=True)[0]


def sections(run: RunFolder, *, images: bool = True) -> dict[str, Section]:
    (part,) = build_report([run.path], ReportOptions(images=images)).parts
    return {section.id: section for section in part.sections}


def test_samples_are_read_back_with_their_prompts(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 24, 3), np.uint8)
    prompts = ["CT: «lungs»", "a", 'b "c"']
    run = RunFolder(tmp_path)
    save_samples(run, "ddpo", "round-001", images, prompts)
    (found,) = read_samples(run, "ddpo").values()
    assert [prompt for prompt, _ in found] == prompts
    assert all(np.array_equal(np.asarray(image), pixels) for (_, image), pixels in zip(found, images, strict=True))
    file = tmp_path / "stages" / "ddpo" / "samples" / "round-001.png"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_sample_is_left_out(tmp_path: Path, content: bytes | None) -> None:
    run = RunFolder(tmp_path)
    save_samples(run, "sft", "table", np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])
    file = tmp_path / "stages" / "sft" / "samples" / "table.png"
    if content is None:
        Image.new("RGB", (8, 8)).save(file)  # without prompts
    else:
        file.write_bytes(content)
    assert read_samples(run, "sft") == {}


@pytest.mark.slow
def test_every_arm_and_every_round_has_images_of_the_same_prompts(run: RunFolder) -> None:
    arms, rounds = (block for block in sections(run)["images"].blocks if isinstance(block, ImageGrid))
    assert arms.columns == tuple(LABELS.values())
    assert rounds.columns == ("round 0", "round 1", "round 2")
    for grid in (arms, rounds):
        assert len(grid.rows) == MOST
        assert all(image.uri.startswith("data:image/png") for _, images in grid.rows for image in images)
        assert all(len(images) == len(grid.columns) for _, images in grid.rows)
    # Round 0 is the base, which has learned nothing, and later rounds differ from it.
    first = [images for _, images in rounds.rows]
    assert any(images[0].uri != images[-1].uri for images in first)


@pytest.mark.slow
def test_the_report_has_judge_scores_with_their_differences(run: RunFolder) -> None:
    found = sections(run)
    plots = [plot for block in found["results"].blocks if isinstance(block, Plots) for plot in block.plots]
    assert [plot.title for plot in plots] == ["judge score", "paired differences"]
    assert [row[0] for row in plots[0].table.rows] == list(LABELS.values())
    assert all(row[3] == "24" for row in plots[0].table.rows)
    assert {"rounds", "scorers", "ratings", "recipe", "compute"} <= set(found)
    assert run.report_file.is_file()


@pytest.mark.slow
def test_images_can_be_left_out(run: RunFolder) -> None:
    assert "images" not in sections(run, images=False)
