"""Push: verified exports only, private by default, and never over other files. The Hub is a fake."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from typer.testing import CliRunner

from tests.helpers.exports import export_of, make_merged, make_verification
from tests.helpers.fake_hub import TOKEN, FakeHub, response
from tests.helpers.problems import raises, warnings_in
from tests.helpers.training import small_recipe
from toolkit.cli.commands import app
from toolkit.errors import ModelError, RunError
from toolkit.exporting import push as push_module
from toolkit.exporting.atomic_output import digest_of
from toolkit.exporting.push import Push, check_push, is_verified_export, push_format
from toolkit.exporting.results import MergedExport, Verification
from toolkit.pipeline import run_recipe
from toolkit.pipeline.existing_run import Delivery, export_again
from toolkit.pipeline.run import Stages
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import find_run


def fail(*_: object, **__: object) -> Any:
    pytest.fail("a stage began")


NOTHING = Stages(fail, fail, fail, fail, fail, fail, fail)
VERIFIED = make_verification()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an export that a push reads."""
    made = tmp_path / "merged"
    made.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (made / name).write_text(name, encoding="utf-8")
    return made


def export_in(folder: Path, verification: Verification | None = VERIFIED) -> MergedExport:
    return make_merged(verification, digest=digest_of(folder))


def test_a_new_repository_is_private_and_gets_all_files(folder: Path) -> None:
    hub = FakeHub()
    url = push_format(folder, export_in(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert url == "https://hub.invalid/anna/chest/commit/1"
    assert hub.repos["anna/chest"]["private"] is True
    assert hub.repos["anna/chest"]["files"] == {".gitattributes", "model.safetensors", "config.json", "README.md"}
    assert hub.names == ["repo_info", "create_repo", "upload_folder"]
    assert dict(hub.calls)["upload_folder"]["folder_path"] == folder


def test_a_repository_is_public_only_on_request(folder: Path) -> None:
    hub = FakeHub()
    push_format(folder, export_in(folder), Push("anna/chest", public=True), hub)  # type: ignore[arg-type]
    assert hub.repos["anna/chest"]["private"] is False


def test_a_private_push_to_a_public_repository_is_rejected(folder: Path) -> None:
    """create_repo ignores ``private`` if the repository exists."""
    hub = FakeHub({"anna/chest": {"private": False, "files": set()}})
    with raises(RunError, "push.repository_public") as caught:
        push_format(folder, export_in(folder), Push("anna/chest", force=True), hub)  # type: ignore[arg-type]
    assert caught.problem.place == "anna/chest"
    assert hub.names == ["repo_info"]


def test_a_repository_with_files_is_rejected_unless_forced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": {".gitattributes", "thesis.pdf"}}})
    with raises(RunError, "push.repository_not_empty") as caught:
        push_format(folder, export_in(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert caught.problem.value == ["thesis.pdf"]
    assert "upload_folder" not in hub.names
    with caplog.at_level(logging.WARNING, "toolkit"):
        push_format(folder, export_in(folder), Push("anna/chest", force=True), hub)  # type: ignore[arg-type]
    assert "thesis.pdf" in hub.repos["anna/chest"]["files"]
    (warned,) = warnings_in(caplog)
    assert (warned.code, warned.place, warned.value) == ("push.files_kept", "anna/chest", 1)


def test_a_push_to_an_empty_repository_is_accepted(folder: Path) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": {".gitattributes"}}})
    push_format(folder, export_in(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert hub.names[-1] == "upload_folder"


def test_an_unverified_export_is_not_pushed(folder: Path) -> None:
    hub = FakeHub()
    with raises(ModelError, "push.not_verified"):
        push_format(folder, export_in(folder, None), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert hub.calls == []


def test_weights_changed_after_verification_are_not_pushed_but_an_edited_card_is(folder: Path) -> None:
    hub, export = FakeHub(), export_in(folder)
    (folder / "README.md").write_text("with a sentence about the hospital", encoding="utf-8")
    push_format(folder, export, Push("anna/chest"), hub)  # type: ignore[arg-type]
    (folder / "model.safetensors").write_text("others", encoding="utf-8")
    with raises(ModelError, "push.files_changed"):
        push_format(folder, export, Push("anna/other"), hub)  # type: ignore[arg-type]
    assert "anna/other" not in hub.repos


def test_the_error_of_the_hub_is_shown_without_the_token(folder: Path, online: None) -> None:
    error = HfHubHTTPError(f"403 Forbidden for Bearer {TOKEN}\nmore", response=response(403))
    hub = FakeHub(rejects=error)
    with raises(RunError, "push.rejected") as caught:
        push_format(folder, export_in(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert caught.problem.place == "anna/chest"
    assert str(caught.problem.value).startswith("403 Forbidden")
    assert TOKEN not in str(caught.error)
    lost = FakeHub(rejects=httpx.ConnectError("no route"))
    with raises(RunError, "push.rejected") as caught:
        push_format(folder, export_in(folder), Push("anna/chest"), lost)  # type: ignore[arg-type]
    assert caught.problem.value == "no route"


def test_offline_without_a_token_or_with_half_a_name_nothing_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with raises(RunError, "push.offline"):
        check_push(Push("anna/chest"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with raises(RunError, "push.token_missing") as caught:
        check_push(Push("anna/chest"))
    assert "hf auth login" in caught.problem.remedy
    for name in ("chest", "anna/chest/2", "anna/", "/anna/chest", "https://hub.invalid/anna/chest"):
        with raises(RunError, "push.name_malformed") as caught:
            check_push(Push(name))
        assert caught.problem.value == name
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_push(Push("anna/chest"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tables: dict[str, dict[str, Any]] = {
        "sft": {"max_steps": 2},
        "evaluate": {"before": False},
        "export": {"to": ("adapter",), "verify": 1},
    }
    made = small_recipe(tmp_path_factory.mktemp("push"), tables, "pushed").model_copy(update={"grpo": None})
    run_recipe(made, STAGES)
    return made


@pytest.fixture
def hub(online: None, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub()
    monkeypatch.setattr(push_module, "HfApi", lambda: made)
    return made


@pytest.mark.slow
def test_a_verified_export_is_pushed_without_another_export(recipe: Recipe, hub: FakeHub) -> None:
    before = export_of(find_run(recipe.run_folder))
    result = export_again(recipe.run_folder, STAGES, delivery=Delivery(push="anna/small"))
    assert result == replace(before, pushed="https://hub.invalid/anna/small/commit/1")
    assert {"README.md", "adapter_model.safetensors"} <= hub.repos["anna/small"]["files"]


def test_what_was_changed_by_hand_is_exported_again_before_its_push(recipe: Recipe, hub: FakeHub) -> None:
    run = find_run(recipe.run_folder)
    file = run.path / "stages/export/adapter/adapter_config.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text("{}", encoding="utf-8")
    weights = run.weights_folder("sft")
    assert not is_verified_export(run, weights, "adapter")
    export_again(recipe.run_folder, STAGES, delivery=Delivery(push="anna/small"))
    assert set(file.read_text(encoding="utf-8").split()) == set(whole.split())  # peft orders its layers anew
    assert is_verified_export(run, weights, "adapter")
    assert not is_verified_export(run, weights, "merged")
    assert "anna/small" in hub.repos


@pytest.mark.parametrize("name", ["anna/-x", "anna/a--b", "anna/x.git", "anna/..", "anna/süß", f"anna/{'x' * 97}"])
def test_a_name_that_the_hub_rejects_is_an_error_before_the_export(recipe: Recipe, hub: FakeHub, name: str) -> None:
    with raises(RunError, "push.name_rejected") as caught:
        export_again(recipe.run_folder, NOTHING, ['export.to=["adapter"]'], Delivery(push=name))
    assert (caught.problem.place, caught.problem.value) == ("--push", name)
    assert hub.calls == []


def test_a_push_without_verification_is_rejected_before_the_export(
    recipe: Recipe, hub: FakeHub, tmp_path: Path
) -> None:
    settings = ['export.to=["merged"]', "export.verify=0"]
    for out in (None, tmp_path):
        with raises(RunError, "push.not_verified"):
            export_again(recipe.run_folder, NOTHING, settings, Delivery(out, "anna/small"))
    assert hub.calls == []


def test_a_private_repository_stays_private_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": set()}})
    with caplog.at_level(logging.WARNING, "toolkit"):
        push_format(folder, export_in(folder), Push("anna/chest", public=True), hub)  # type: ignore[arg-type]
    assert hub.repos["anna/chest"]["private"]
    (warned,) = warnings_in(caplog)
    assert (warned.code, warned.place) == ("push.repository_stays_private", "anna/chest")


def test_a_repository_has_one_format(recipe: Recipe, hub: FakeHub) -> None:
    with raises(RunError, "push.one_format_only") as caught:
        export_again(recipe.run_folder, STAGES, ['export.to=["adapter","merged"]'], Delivery(push="anna/small"))
    assert caught.problem.value == "adapter, merged"
    assert hub.calls == []


def test_the_command_pushes_and_prints_the_address_and_no_token(recipe: Recipe, hub: FakeHub) -> None:
    found = CliRunner().invoke(app, ["export", str(recipe.run_folder), "--push", "anna/small"])
    assert found.exit_code == 0
    assert found.stdout.splitlines()[-1] == "pushed: https://hub.invalid/anna/small/commit/1"
    assert "serve it: vllm serve tiny --enable-lora" in found.stdout
    assert TOKEN not in found.output
    assert TOKEN not in find_run(recipe.run_folder).log_file.read_text(encoding="utf-8")


def test_public_without_push_is_rejected(recipe: Recipe) -> None:
    found = CliRunner().invoke(app, ["export", str(recipe.run_folder), "--public"])
    assert found.exit_code == 2


def test_a_method_is_named_for_image_generators_only(recipe: Recipe, hub: FakeHub) -> None:
    found = CliRunner().invoke(app, ["export", str(recipe.run_folder), "--push", "anna/small", "--method", "sft"])
    assert found.exit_code == 2
    assert hub.calls == []
