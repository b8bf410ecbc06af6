"""The plan of an image generation recipe: ratings, prompts, the base, what does not fit, and what was not tried."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.rated import COLUMNS, write_csv, write_images
from tests.helpers.recipes import load_recipe
from toolkit.cli.commands import app
from toolkit.imagegen.generators.stable_diffusion import SIDE, save_tiny_pipeline
from toolkit.imagegen.seeds import imagegen_of
from toolkit.planning import Gpu, described_gpu, named_gpu
from toolkit.planning.imagegen import ImagegenPlan, make_imagegen_plan
from toolkit.recipe import Recipe

IMAGES = 60
ROOT = Path(__file__).parents[1]

Write = Callable[..., Recipe]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "stable-diffusion-v1-5"  # a name whose licence is known
    save_tiny_pipeline(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, pipeline: Path) -> Write:
    """Write ratings and a recipe, whose lines are changed by keyword. Return the recipe."""

    def make(
        rating: Callable[[int], object] = lambda number: 1 + number % 3,
        prompt: str = "CT: clear lungs",
        **lines: str,
    ) -> Recipe:
        names = [f"image_{number}.png" for number in range(IMAGES)]
        write_images(tmp_path, names)
        modality = ["CT", "MRI"]
        rows = [(name, rating(number), modality[number % 2], 3, prompt) for number, name in enumerate(names)]
        write_csv(tmp_path / "ratings.csv", rows, COLUMNS)
        text = {
            "size": f"size = {SIDE}",
            "generator": f'generator = {{ model = "{pipeline}", guidance_scale = 2.0 }}',
            "selector": 'selector = { encoder = "tiny" }',
            "policy": 'policy = { encoder = "tiny" }',
            "judge": 'judge = { encoder = "tiny-wide", features = 8, images = 64 }',
            "update": 'update = { methods = ["sft", "ddpo"], sft_steps = 10, rounds = 3 }',
            **lines,
        }
        file = tmp_path / "recipe.toml"
        head = f'[run]\nname = "planned"\nfolder = "{tmp_path}"\n\n[imagegen]\nratings = ["ratings.csv"]\n'
        file.write_text(head + "\n".join(text.values()) + "\n", encoding="utf-8")
        return load_recipe(file)

    return make


def found(plan: ImagegenPlan) -> list[tuple[str, str, object, bool]]:
    return [(one.code, one.place, one.details.value, one.certain) for one in plan.problems]


def test_a_recipe_that_can_work_has_rows_splits_steps_and_images(write: Write) -> None:
    recipe = write()
    plan = make_imagegen_plan(recipe, None)
    assert plan.problems == []
    assert plan.stages == imagegen_of(recipe).stages
    assert plan.ratings is not None
    assert (plan.ratings.rows, plan.ratings.images, plan.ratings.modalities) == (IMAGES, IMAGES, 2)
    assert sum(split.images for split in plan.ratings.splits.values()) == IMAGES
    assert all(all(plan.ratings.splits[name].levels) for name in ("train", "judge_train"))
    assert plan.work["sft"].steps == plan.work["control"].steps == 10
    ddpo = plan.work["ddpo"]
    assert (ddpo.steps, ddpo.evaluations, ddpo.generated) == (3 * 2, 3 + 2, 3 * 256 + 5 * 64)
    assert ddpo.updated == 3 * 256 * 20
    assert plan.generator.state == "folder"
    assert plan.memory is not None
    assert "images" in plan.unknown


def test_a_training_split_without_a_rating_level_is_a_certain_problem(write: Write) -> None:
    plan = make_imagegen_plan(write(rating=lambda number: 3 if number % 2 else 1), None)
    value = "train without 2, judge_train without 2"
    assert found(plan) == [("imagegen.training_levels_missing", "imagegen.ratings", value, True)]


def test_unusable_rows_are_counted_and_too_many_of_them_are_a_problem(write: Write) -> None:
    few = make_imagegen_plan(write(rating=lambda number: 7 if number == 5 else 1 + number % 3), None)
    assert few.problems == []
    assert few.ratings is not None
    assert [one.count for one in few.ratings.dropped] == [1]
    assert [one.code for one in few.warnings] == ["imagegen.rating_unknown"]
    many = make_imagegen_plan(write(rating=lambda number: 7 if number % 2 else 1), None)
    assert many.ratings is None
    value = f"{IMAGES // 2} of {IMAGES}"
    assert found(many) == [("imagegen.too_many_rows_unusable", "imagegen.ratings", value, True)]


def test_a_prompt_beyond_the_text_encoder_is_a_certain_problem(write: Write) -> None:
    plan = make_imagegen_plan(write(prompt="CT:" + " nodule" * 40), None)
    value = {("CT:" + " nodule" * 40)[:40]: 245}  # a token for each character but spaces, and two special tokens
    assert found(plan) == [("imagegen.prompt_too_long", "[imagegen] prompts", value, True)]


def test_a_folder_of_pickles_is_a_certain_problem(write: Write, pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stable-diffusion-v1-5"
    for path in pipeline.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    plan = make_imagegen_plan(write(generator=f'generator = {{ model = "{folder}" }}'), None)
    assert [(one.code, one.place, one.certain) for one in plan.problems] == [
        ("imagegen.pipeline_pickled", "[imagegen.generator] model", True)
    ] * 3
    assert len({str(one.details.value) for one in plan.problems}) == 3


def test_a_size_that_the_base_cannot_make_is_a_certain_problem(write: Write) -> None:
    plan = make_imagegen_plan(write(size="size = 33"), None)
    assert found(plan) == [("imagegen.image_size_not_multiple", "[imagegen] size", 33, True)]


def test_too_few_images_for_the_extractor_are_found_before_the_scorers_are_trained(write: Write) -> None:
    plan = make_imagegen_plan(write(judge='judge = { encoder = "tiny-wide", features = 64 }'), None)
    assert found(plan) == [("imagegen.extractor_images_too_few", "[imagegen.judge] features", IMAGES, True)]


STABLE_DIFFUSION = 'generator = { model = "stable-diffusion-v1-5/stable-diffusion-v1-5" }'


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_base_that_is_not_downloaded_is_planned_and_listed_as_not_tried(write: Write) -> None:
    plan = make_imagegen_plan(write(size="size = 512", generator=STABLE_DIFFUSION), named_gpu("T4"))
    assert plan.problems == []
    assert {"base", "prompts"} <= plan.unknown.keys()
    assert plan.generator.trained_parameters == 3_188_736
    assert plan.disk is not None
    assert plan.disk.downloads == {"stable-diffusion-v1-5/stable-diffusion-v1-5": 4 * 1_066_235_307}
    assert plan.time is not None
    assert set(plan.time["T4"]) == {"scorers", "base", "control", "sft", "ddpo"}


def test_a_base_that_is_not_downloaded_is_a_certain_problem_offline(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = make_imagegen_plan(write(size="size = 512", generator=STABLE_DIFFUSION), None)
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert found(plan) == [("imagegen.base_not_cached", "[imagegen.generator] model", name, True)]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("gpu", "certain"), [(described_gpu(2), True), (described_gpu(8), False), (described_gpu(24), None)]
)
def test_only_parameters_that_do_not_fit_are_certain(write: Write, gpu: Gpu, certain: bool | None) -> None:
    plan = make_imagegen_plan(write(size="size = 512", generator=STABLE_DIFFUSION), gpu)
    code = {True: "imagegen.generator_larger_than_gpu", False: "plan.gpu_memory_too_small"}
    assert {(one.code, one.certain) for one in plan.problems} == (
        set() if certain is None else {(code[certain], certain)}
    )


@pytest.mark.usefixtures("online")
def test_the_largest_batch_fits_and_the_next_one_does_not(write: Write) -> None:
    gpu = described_gpu(16)

    def peaks(micro_batch: int) -> int:
        update = f'update = {{ methods = ["ddpo"], control = false, micro_batch = {micro_batch} }}'
        plan = make_imagegen_plan(write(size="size = 512", generator=STABLE_DIFFUSION, update=update), gpu)
        assert plan.memory is not None
        return max(one.total for one in plan.memory["ddpo"].moments if one.name == "ddpo update")

    most = make_imagegen_plan(write(size="size = 512", generator=STABLE_DIFFUSION), gpu).largest["update.micro_batch"]
    assert peaks(most) <= gpu.memory < peaks(most + 1)


def test_a_chosen_limit_of_clipped_advantages_that_can_never_act_is_a_warning(write: Write) -> None:
    def warned(guards: str) -> list[str]:
        plan = make_imagegen_plan(write(guards=f"guards = {{ {guards} }}"), None)
        assert {one.code for one in plan.warnings} <= {"imagegen.guard_cannot_fire"}
        return [one.place for one in plan.warnings]

    assert warned("max_clipped = 0.04, advantage_clip = 5.0") == ["[imagegen.guards] advantage_clip, max_clipped"]
    assert warned("advantage_clip = 16.0") == ["[imagegen.guards] advantage_clip"]
    assert warned("advantage_clip = 2.0") == warned("max_copies = 0.1") == []


def test_the_plan_is_json(write: Write) -> None:
    plan = make_imagegen_plan(write(), named_gpu("T4"))
    read = json.loads(json.dumps(plan.to_json()))
    assert read["kind"] == "imagegen"
    assert read["ok"] is True
    assert read["ratings"]["splits"]["test"]["images"] > 0


def test_the_command_prints_the_plan_and_exits_with_1_for_a_problem(write: Write, tmp_path: Path) -> None:
    write()
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "recipe.toml"), "--gpu", "T4"])
    assert shown.exit_code == 0
    write(size="size = 33")
    assert CliRunner().invoke(app, ["plan", str(tmp_path / "recipe.toml"), "--json"]).exit_code == 1


def test_a_run_with_a_certain_problem_ends_before_its_first_stage(write: Write, tmp_path: Path) -> None:
    write(rating=lambda number: 3 if number % 2 else 1)
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.toml")])
    assert ended.exit_code != 0
    assert not (tmp_path / "planned").exists()


@pytest.mark.slow
def test_a_plan_of_the_tiny_recipe_imports_no_torch() -> None:
    code = (
        "import sys; from toolkit.recipe import load_recipe; from toolkit.planning.imagegen import make_imagegen_plan; "
        "plan = make_imagegen_plan(load_recipe('recipes/imagegen_tiny.toml', tasks={}), None); "
        "assert plan.problems == [], plan.problems; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
