"""The commands for a finished run of image generation: images, rating sheets, and the ratings that come back."""

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tests.helpers.imagegen_runs import RECIPE, SMALL
from tests.helpers.recipes import load_recipe
from toolkit.cli.commands import app
from toolkit.errors import ToolkitError
from toolkit.imagegen.generate import NOTICE, load_selector, open_finished
from toolkit.imagegen.ratings.next_round import COLUMNS
from toolkit.imagegen.ratings.sheet import read_key
from toolkit.imagegen.ratings.synthetic_images import PROMPTS
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.recipe import Recipe
from toolkit.runfolder import read_json

pytestmark = pytest.mark.slow

LUNGS = "CT: clear lungs"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["imagegen", *map(str, arguments)])


def error_of(*arguments: object) -> ToolkitError:
    """Return the error that ends a command."""
    found = invoke(*arguments).exception
    assert isinstance(found, ToolkitError), found
    return found


def done(*arguments: object) -> str:
    found = invoke(*arguments)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on the shipped base, which knows the synthetic prompts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("commands")
    run_imagegen(load_recipe(RECIPE, [*SMALL, "run.name=made", f"run.folder={folder}"]))
    yield folder / "made"
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def other_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a vision-language model, as far as a command looks at it."""
    folder = tmp_path_factory.mktemp("language") / "chest"
    folder.mkdir()
    shutil.copy(RECIPE.parent / "quickstart.toml", folder / "recipe.toml")
    (folder / "run.json").write_text('{"schema_version": 2}')
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / row["image_path"])) for row in rows_of(folder)]


def files_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_generate_writes_the_images_of_every_prompt_with_their_scores(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "images"
    prompts = ["--prompt", LUNGS, "--prompt", "MRI: normal brain"]
    shown = done("generate", run, *prompts, "--count", 3, "--out", out, "--method", "sft", "--seed", 5)
    rows, pixels = rows_of(out), pixels_of(out)
    assert [row["prompt"] for row in rows] == [LUNGS] * 3 + ["MRI: normal brain"] * 3
    assert {(row["method"], row["seed"], row["candidates"], row["modality"]) for row in rows} == {("sft", "5", "1", "")}
    assert [row["noise"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert all(image.shape == (32, 32, 3) for image in pixels)
    assert len({image.tobytes() for image in pixels}) == 6
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    scores = load_selector(open_finished(run, "test")).score(batch).scores_N
    assert [float(row["selector_score"]) for row in rows] == pytest.approx(scores.tolist(), abs=1e-5)
    assert "6 images" in shown
    with Image.open(out / rows[0]["image_path"]) as image:
        assert image.info["Comment"] == NOTICE


def test_the_same_seed_gives_the_same_files_and_methods_differ(run: Path, tmp_path: Path) -> None:
    for name, more in {
        "one": ["--count", 3],
        "same": ["--count", 3],
        "fewer": ["--count", 2],
        "seed": ["--count", 3, "--seed", 1],
        "base": ["--count", 3, "--method", "base"],
    }.items():
        method = [] if "--method" in more else ["--method", "sft"]
        done("generate", run, "--prompt", LUNGS, *more, *method, "--out", tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "same")
    first = {name: pixels_of(tmp_path / name)[0].tobytes() for name in ("one", "seed", "base")}
    one, fewer = (pixels_of(tmp_path / name)[0].astype(int) for name in ("one", "fewer"))
    assert np.abs(one - fewer).max() <= 1  # the sums of another batch size are rounded differently
    assert len({first[name] for name in ("one", "seed", "base")}) == 3


def test_the_default_method_has_the_highest_judge_score(run: Path, tmp_path: Path) -> None:
    rows = {row["arm"]: row["judge"]["value"] for row in read_json(run / "results.json")["imagegen"]["rows"]}
    done("generate", run, "--prompt", LUNGS, "--out", tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["method"] == max(("sft", "ddpo"), key=lambda arm: rows[arm])


def test_best_of_keeps_the_candidate_with_the_highest_selector_score(run: Path, tmp_path: Path) -> None:
    common = ["generate", run, "--prompt", LUNGS, "--method", "ddpo", "--seed", 3]
    done(*common, "--count", 12, "--out", tmp_path / "all")
    done(*common, "--count", 3, "--best-of", 4, "--out", tmp_path / "best")
    every, best = rows_of(tmp_path / "all"), rows_of(tmp_path / "best")
    for number, row in enumerate(best):
        group = every[4 * number : 4 * number + 4]
        wanted = max(group, key=lambda one: float(one["selector_score"]))
        assert (row["noise"], row["selector_score"], row["candidates"]) == (
            wanted["noise"],
            wanted["selector_score"],
            "4",
        )
        kept = pixels_of(tmp_path / "all")[int(row["noise"])]
        assert (pixels_of(tmp_path / "best")[number] == kept).all()


def test_a_modality_generates_images_for_all_of_its_prompts(run: Path, tmp_path: Path) -> None:
    done("generate", run, "--modality", "OCT", "--count", 2, "--method", "base", "--out", tmp_path / "oct")
    rows = rows_of(tmp_path / "oct")
    assert {row["prompt"] for row in rows} == set(PROMPTS["OCT"].values())
    assert {row["modality"] for row in rows} == {"OCT"}
    assert len(rows) == 2 * len(PROMPTS["OCT"])


@pytest.mark.parametrize(
    ("more", "code", "value"),
    [
        (["--prompt", "CT: " + "lungs " * 40], "prompt_too_long", 41),
        (["--prompt", "CT: unknownword"], "prompt_word_unknown", ["unknownword"]),
        (["--prompt", LUNGS, "--modality", "PET"], "modality_unknown", "PET"),
        (["--modality", "PET"], "modality_unknown", "PET"),
        (["--prompt", "  "], "prompt_empty", ""),
        ([], "prompts_missing", "none"),
    ],
)
def test_prompts_and_modalities_that_cannot_be_used_are_an_error(
    run: Path, tmp_path: Path, more: list[str], code: str, value: object
) -> None:
    found = error_of("generate", run, *more, "--method", "sft", "--out", tmp_path / "out")
    assert (found.code, found.value) == (f"imagegen.{code}", value)
    assert list(tmp_path.iterdir()) == []


def test_no_command_overwrites_a_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for command in (["generate", run, "--prompt", LUNGS], ["sheet", run]):
        found = error_of(*command, "--method", "base", "--out", out)
        assert (found.code, found.place) == ("imagegen.folder_not_empty", str(out))
        assert files_of(tmp_path) == {"out/thesis.txt": hashlib.sha256(b"mine").hexdigest()}
    (tmp_path / "empty").mkdir()
    done("generate", run, "--prompt", LUNGS, "--method", "base", "--out", tmp_path / "empty")


def test_a_run_of_a_language_model_and_a_folder_without_a_run_are_errors(other_kind: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    csv_file = tmp_path / "ratings.csv"
    csv_file.write_text("")
    for command in (["generate", "--prompt", LUNGS, "--out", out], ["sheet", "--out", out]):
        (problem,) = error_of(*command, other_kind).problems
        assert problem.code == "recipe.not_image_generator"
        assert f"toolkit imagegen {command[0]}" in problem.rule
        assert error_of(*command, tmp_path).code == "run.not_a_run_folder"
    (problem,) = error_of("collect", other_kind, csv_file, "--sheet", tmp_path).problems
    assert problem.code == "recipe.not_image_generator"


def test_an_unfinished_run_is_an_error_and_its_finished_methods_can_be_used(run: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(run, tmp_path / "partial")
    (partial / "stages" / "ddpo" / "done.json").unlink()
    images = ["generate", partial, "--prompt", LUNGS, "--out", tmp_path / "out"]
    for more in ([], ["--method", "ddpo"]):
        found = error_of(*images, *more)
        assert found.code == "imagegen.stage_not_finished"
        assert "ddpo" in found.rule
    assert error_of("sheet", partial, "--out", tmp_path / "sheet").code == "imagegen.stage_not_finished"
    done(*images, "--method", "sft")
    (partial / "stages" / "scorers" / "done.json").unlink()
    found = error_of("generate", partial, "--prompt", LUNGS, "--method", "sft", "--out", tmp_path / "more")
    assert found.code == "imagegen.stage_not_finished"
    assert "scorers" in found.rule


def test_a_lora_of_another_base_is_an_error(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    file = moved / "stages" / "sft" / "lora.json"
    file.write_text(json.dumps(read_json(file) | {"base_sha256": "0" * 64}))
    generate = ["generate", moved, "--prompt", LUNGS, "--method", "sft", "--out", tmp_path / "out"]
    assert error_of(*generate).code == "imagegen.base_changed"
    file.unlink()
    assert error_of(*generate).code == "imagegen.lora_record_unreadable"


def pages_of(folder: Path) -> list[dict[str, Any]]:
    """What each page of a sheet shows."""
    found = []
    for page in sorted(folder.glob("page_*.html")):
        text = re.search(r'id="sheet">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
        assert text is not None
        found.append(json.loads(text[1]))
    return found


def download(page: dict[str, Any], rater: str, folder: Path) -> Path:
    """The CSV of a page on which an expert rated every image, and repeated ones almost always equally."""
    file = folder / f"ratings_{page['id']}_page-{page['page']}_{rater}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for position, index in enumerate(page["order"], start=1):
            image = page["images"][index]
            rating = 1 + (int(hashlib.sha256(image["path"].encode()).hexdigest(), 16) + (position == 1)) % 3
            texts = image["path"], rating, image["modality"], 3, image["prompt"], rater
            writer.writerow([*texts, page["id"], page["page"], position])
    return file


def test_a_sheet_is_blinded_has_every_method_and_keeps_its_key_in_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "blinded"
    shown = done("sheet", run, "--out", out, "--images", 12, "--per-page", 15, "--seed", 4)
    key = read_key(run / "sheets" / "blinded.json")
    assert [len([one for one in key.images if one.source == name]) for name in ("base", "sft", "ddpo")] == [12] * 3
    pages = pages_of(out)
    assert len(pages) == 3
    assert all(len(page["order"]) <= 15 for page in pages)
    assert sum(len(one.positions) == 2 for one in key.images) >= len(pages)
    images = {image["path"]: (out / image["path"]).read_bytes() for page in pages for image in page["images"]}
    assert len(set(images.values())) == 36
    for page in out.glob("*.html"):
        text = re.sub(r'"data:image/png;base64,[^"]*"', "", page.read_text(encoding="utf-8"))
        assert not re.search(r"\b(ddpo|sft)\b", text)
    assert str(run / "sheets" / "blinded.json") in shown
    assert error_of("sheet", run, "--out", tmp_path / "elsewhere" / "blinded").code == "imagegen.sheet_key_exists"


def test_the_same_seed_gives_the_same_sheet(run: Path, tmp_path: Path) -> None:
    common = ["sheet", run, "--images", 4, "--method", "sft"]
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        done(*common, "--seed", seed, "--out", tmp_path / name)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second") != files_of(tmp_path / "third")


def test_collected_ratings_train_the_next_run(run: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "round2"
    done("sheet", run, "--out", sheet, "--images", 50, "--per-page", 60)
    files = [download(page, rater, tmp_path) for page in pages_of(sheet) for rater in ("ab", "cd")]
    shown = done("collect", run, *files, "--sheet", sheet)
    ratings = sheet / "ratings.csv"
    key = read_key(run / "sheets" / "round2.json")
    shown_twice = sum(len(entry.positions) == 2 for entry in key.images)
    assert f"n {2 * shown_twice}" in shown
    assert "kappa" in shown
    assert f"{2 * (150 + shown_twice)} ratings of 150 images" in shown
    assert re.search(r"ddpo +│ +\d", shown)
    assert str(ratings) in shown.replace("\n", "")
    _, result = run_imagegen(next_recipe(tmp_path, ratings))
    assert result.ratings is not None
    assert (result.ratings.images, result.ratings.dropped) == (150, ())
    assert [row.arm for row in result.rows] == ["base", "sft"]


def next_recipe(folder: Path, ratings: Path) -> Recipe:
    """The tiny recipe on a file of ratings."""
    text = RECIPE.read_text(encoding="utf-8").split("[imagegen.synthetic]")
    rest = text[1][text[1].index("[imagegen.selector]") :]
    file = folder / "next.toml"
    file.write_text(text[0].replace("[imagegen]", f'[imagegen]\nratings = ["{ratings}"]') + rest, encoding="utf-8")
    own = [setting for setting in SMALL if "synthetic" not in setting]
    names = ["run.name=next", f"run.folder={folder / 'runs'}"]
    more = ['imagegen.update.methods=["sft"]', "imagegen.update.control=false"]
    return load_recipe(file, [*own, *more, *names], files=True)


def test_ratings_of_other_sheets_and_missing_images_leave_no_file(run: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("two", 8)):
        done("sheet", run, "--out", tmp_path / name, "--images", 4, "--method", "base", "--seed", seed)
    file = download(pages_of(tmp_path / "one")[0], "ab", tmp_path)
    assert error_of("collect", run, file, "--sheet", tmp_path / "two").code == "imagegen.sheet_image_not_in_key"
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split(",")
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join([lines[0], ",".join([cells[0], "9", *cells[2:]])]), encoding="utf-8")
    found = error_of("collect", run, changed, "--sheet", tmp_path / "one")
    assert found.code == "imagegen.too_many_rows_unusable"
    assert "'9'" in found.remedy
    assert not (tmp_path / "one" / "ratings.csv").exists()
    done("collect", run, file, "--sheet", tmp_path / "one", "--out", tmp_path / "elsewhere.csv")
    found = error_of("collect", run, file, "--sheet", tmp_path / "one", "--out", tmp_path / "elsewhere.csv")
    assert found.code == "imagegen.collected_file_exists"
    next((tmp_path / "one" / "images").iterdir()).unlink()
    assert error_of("collect", run, file, "--sheet", tmp_path / "one").code == "imagegen.sheet_incomplete"
    assert error_of("collect", run, file, "--sheet", tmp_path / "none").code == "imagegen.sheet_folder_missing"
