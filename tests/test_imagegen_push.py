"""A Stable Diffusion run from its licence to a fake Hub: model card and licence beside the LoRA."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner, Result

from tests.helpers.fake_hub import TOKEN, FakeHub
from tests.helpers.imagegen_runs import RECIPE, SMALL
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.cli.commands import app
from toolkit.errors import ModelError, RunError
from toolkit.exporting import push as push_module
from toolkit.imagegen.generators.stable_diffusion import save_tiny_pipeline
from toolkit.imagegen.licence import OPEN_RAIL
from toolkit.pipeline.imagegen import run_imagegen
from toolkit.planning.imagegen import make_imagegen_plan
from toolkit.recipe import Recipe
from toolkit.runfolder import read_json

pytestmark = pytest.mark.slow

NAMED = f"imagegen.generator.licence={OPEN_RAIL.id}"
SD = (
    "imagegen.generator.guidance_scale=2.0",
    "imagegen.update.clip_range=0.01",
    "imagegen.update.rounds=1",
    "imagegen.update.control=false",
)
FILES = {"LICENSE", "README.md", "pytorch_lora_weights.safetensors"}


def recipe(base: Path, *more: str) -> Recipe:
    names = [f"imagegen.generator.model={base}", "run.name=sd", f"run.folder={base.parent / 'runs'}"]
    return load_recipe(RECIPE, [*SMALL, *SD, *names, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on a tiny random pipeline with a named licence."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("anna_kowalski") / "our_minim"
    save_tiny_pipeline(base)
    run_imagegen(recipe(base, NAMED))
    yield base.parent / "runs" / "sd"
    torch.set_num_threads(before)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return shutil.copytree(run, tmp_path / "sd")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    made = FakeHub()
    monkeypatch.setattr(push_module, "HfApi", lambda: made)
    return made


def export(run: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["export", str(run), *more])


@pytest.mark.parametrize("arm", ["sft", "ddpo"])
def test_a_run_writes_card_and_licence_beside_each_lora(run: Path, arm: str) -> None:
    folder = run / "stages" / arm / "weights"
    assert {path.name for path in folder.iterdir()} == FILES
    assert OPEN_RAIL.file is not None
    assert (folder / "LICENSE").read_bytes() == OPEN_RAIL.file.read_bytes()
    record = read_json(run / "stages" / arm / "lora.json")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == OPEN_RAIL.id
    assert {"synthetic-images", "research", arm} <= set(card.data.tags)
    text = str(card)
    assert f"revision `sha256:{record['base_sha256']}`" in text
    row = next(one for one in read_json(run / "results.json")["imagegen"]["rows"] if one["arm"] == arm)
    assert f"| {row['judge']['value']:.3f} [" in text
    assert f"| {row['to_base']['difference']['value']:+.3f} [" in text
    assert "ratings were synthetic" in text
    assert "anna_kowalski" not in text
    assert "apache" not in text.lower()


def test_the_record_identifies_lora_and_base(run: Path) -> None:
    record = read_json(run / "stages" / "sft" / "lora.json")
    assert record["base"] == "our_minim"
    other = read_json(run / "stages" / "ddpo" / "lora.json")
    assert record["base_sha256"] == other["base_sha256"]
    assert record["sha256"] != other["sha256"]


def test_an_unknown_licence_is_an_error_before_a_run_begins(tmp_path: Path) -> None:
    base = tmp_path / "our_minim"
    save_tiny_pipeline(base)
    with raises(ModelError, "imagegen.licence_unknown") as caught:
        run_imagegen(recipe(base))
    assert caught.problem.place == "imagegen.generator.licence"
    assert "creativeml-openrail-m" in caught.problem.remedy
    with raises(ModelError, "imagegen.licence_is_apache"):
        run_imagegen(recipe(base, "imagegen.generator.licence=apache-2.0"))
    assert not (tmp_path / "runs").exists()


def test_the_plan_finds_an_unknown_licence_and_the_command_run_stops_for_it(tmp_path: Path) -> None:
    base = tmp_path / "our_minim"
    save_tiny_pipeline(base)
    (problem,) = make_imagegen_plan(recipe(base), None).problems
    assert (problem.code, problem.place) == ("imagegen.licence_unknown", "imagegen.generator.licence")
    assert problem.certain
    assert make_imagegen_plan(recipe(base, NAMED), None).problems == []
    known = base.rename(tmp_path / "stable-diffusion-v1-5")
    assert make_imagegen_plan(recipe(known), None).problems == []


def test_a_push_uploads_the_lora_with_its_card_and_licence(run: Path, hub: FakeHub) -> None:
    found = export(run, "--push", "anna/minim", "--method", "sft")
    assert found.exit_code == 0, found.exception
    assert found.stdout.splitlines()[-1] == "pushed: https://hub.invalid/anna/minim/commit/1"
    assert OPEN_RAIL.name in found.stdout
    assert hub.repos["anna/minim"] == {"private": True, "files": {".gitattributes", *FILES}}
    assert dict(hub.calls)["upload_folder"]["folder_path"] == run / "stages" / "sft" / "weights"
    assert TOKEN not in found.output


def test_the_default_is_the_method_with_the_highest_judge_score(run: Path, hub: FakeHub) -> None:
    rows = {row["arm"]: row["judge"]["value"] for row in read_json(run / "results.json")["imagegen"]["rows"]}
    best = max(("sft", "ddpo"), key=lambda arm: rows[arm])
    assert export(run, "--push", "anna/minim", "--public").exit_code == 0
    assert dict(hub.calls)["upload_folder"]["folder_path"] == run / "stages" / best / "weights"
    assert hub.repos["anna/minim"]["private"] is False


def test_a_repository_with_files_is_rejected_unless_forced(run: Path, hub: FakeHub) -> None:
    hub.repos["anna/minim"] = {"private": True, "files": {"thesis.pdf"}}
    rejected = export(run, "--push", "anna/minim").exception
    assert isinstance(rejected, RunError)
    assert rejected.code == "push.repository_not_empty"
    assert "upload_folder" not in hub.names
    assert export(run, "--push", "anna/minim", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("README.md", None, "lora_folder_incomplete"),
        ("README.md", "---\nlicense: apache-2.0\n---\n\n# A LoRA\n", "card_licence_not_bases"),
        ("README.md", "no header", "card_licence_not_bases"),
        ("README.md", "---\nlicense: [\n---\n", "card_licence_not_bases"),
        ("LICENSE", None, "lora_folder_incomplete"),
        ("LICENSE", "Apache License 2.0", "licence_text_changed"),
        ("pytorch_lora_weights.safetensors", "other parameters", "lora_changed"),
        ("patients.csv", "MRN-1", "lora_folder_unknown_files"),
    ],
)
def test_a_folder_that_is_not_what_the_run_wrote_is_not_pushed(
    copied: Path, hub: FakeHub, name: str, text: str | None, code: str
) -> None:
    file = copied / "stages" / "sft" / "weights" / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="utf-8")
    found = export(copied, "--push", "anna/minim", "--method", "sft")
    assert isinstance(found.exception, ModelError)
    assert found.exception.code == f"imagegen.{code}"
    assert found.exception.remedy
    assert hub.calls == []


def test_a_completed_card_is_pushed(copied: Path, hub: FakeHub) -> None:
    card = copied / "stages" / "sft" / "weights" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nWith a word about the wards.\n", encoding="utf-8")
    assert export(copied, "--push", "anna/minim", "--method", "sft").exit_code == 0


def test_base_and_unfinished_methods_are_not_pushed(copied: Path, hub: FakeHub) -> None:
    (copied / "stages" / "ddpo" / "done.json").unlink()
    for code, more in (
        ("imagegen.base_not_pushable", ["--method", "base"]),
        ("imagegen.stage_not_finished", ["--method", "ddpo"]),
        ("imagegen.stage_not_finished", []),
    ):
        found = export(copied, "--push", "anna/minim", *more).exception
        assert isinstance(found, RunError)
        assert found.code == code
    assert hub.calls == []


def test_a_generator_that_diffusers_cannot_load_is_not_pushed(copied: Path, hub: FakeHub) -> None:
    file = copied / "recipe.toml"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join('model = "tiny"' if "our_minim" in line else line for line in lines), encoding="utf-8")
    found = export(copied, "--push", "anna/minim", "--method", "sft")
    assert isinstance(found.exception, ModelError)
    assert found.exception.code == "imagegen.lora_not_stable_diffusion"
    assert hub.calls == []


def test_offline_nothing_is_pushed(run: Path) -> None:
    found = export(run, "--push", "anna/minim").exception
    assert isinstance(found, RunError)
    assert found.code == "push.offline"


def test_options_of_other_models_are_rejected(run: Path) -> None:
    for more in ([], ["--push", "anna/minim", "--to", "merged"], ["--push", "anna/minim", "--no-verify"]):
        assert export(run, *more).exit_code == 2
