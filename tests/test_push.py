"""Pushing: what was proven, private unless said, into no repository of others. The Hub's side is a fake."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from training import small_recipe
from typer.testing import CliRunner

from tests.helpers.problems import raises, warnings_in
from toolkit.cli.commands import app
from toolkit.errors import ModelError, RunError
from toolkit.pipeline import run_recipe
from toolkit.pipeline.again import Delivery, export_again
from toolkit.pipeline.stages import STAGES
from toolkit.pipeline.steps import Stages
from toolkit.recipe import Recipe
from toolkit.run import find_run
from toolkit.stages.export import push as push_module
from toolkit.stages.export.beside import digest_of
from toolkit.stages.export.push import Push, check_push, is_proven, push_form

NOTHING = Stages(*[lambda *_: pytest.fail("a stage began")] * 6)
TOKEN = "hf_" + "PlantedPlantedPlanted"


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "https://hub.invalid"))


@dataclass
class FakeHub:
    """The network's other side: repositories with files, and every call bound to HfApi's own signature."""

    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    refuses: Exception | None = None

    def _bind(self, name: str, *arguments: Any, **named: Any) -> Mapping[str, Any]:
        bound = inspect.signature(getattr(HfApi, name)).bind(self, *arguments, **named).arguments
        self.calls.append((name, {key: value for key, value in bound.items() if key != "self"}))
        return bound

    def repo_info(self, *arguments: Any, **named: Any) -> Any:
        repo = self._bind("repo_info", *arguments, **named)["repo_id"]
        if repo not in self.repos:
            raise RepositoryNotFoundError("404", response=response(404))
        return SimpleNamespace(private=self.repos[repo]["private"])

    def list_repo_files(self, *arguments: Any, **named: Any) -> list[str]:
        repo = self._bind("list_repo_files", *arguments, **named)["repo_id"]
        return sorted(self.repos[repo]["files"])

    def create_repo(self, *arguments: Any, **named: Any) -> None:
        bound = self._bind("create_repo", *arguments, **named)
        if self.refuses:
            raise self.refuses
        if bound["repo_id"] in self.repos:
            assert bound["exist_ok"]
        else:
            self.repos[bound["repo_id"]] = {"private": bound["private"], "files": {".gitattributes"}}

    def upload_folder(self, *arguments: Any, **named: Any) -> Any:
        bound = self._bind("upload_folder", *arguments, **named)
        files = {file.name for file in Path(bound["folder_path"]).iterdir()}
        self.repos[bound["repo_id"]]["files"] |= files
        return SimpleNamespace(commit_url=f"https://hub.invalid/{bound['repo_id']}/commit/1")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export as far as a push looks at it."""
    made = tmp_path / "merged"
    made.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (made / name).write_text(name, encoding="utf-8")
    return made


def proof_of(folder: Path) -> dict[str, Any]:
    return {"questions": 16, "differing": 0, "digest": digest_of(folder)}


def test_a_new_repository_is_private_and_gets_all_files(folder: Path) -> None:
    hub = FakeHub()
    url = push_form(folder, proof_of(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert url == "https://hub.invalid/anna/chest/commit/1"
    assert hub.repos["anna/chest"]["private"] is True
    assert hub.repos["anna/chest"]["files"] == {".gitattributes", "model.safetensors", "config.json", "README.md"}
    assert hub.names == ["repo_info", "create_repo", "upload_folder"]
    assert dict(hub.calls)["upload_folder"]["folder_path"] == folder


def test_public_must_be_said(folder: Path) -> None:
    hub = FakeHub()
    push_form(folder, proof_of(folder), Push("anna/chest", public=True), hub)  # type: ignore[arg-type]
    assert hub.repos["anna/chest"]["private"] is False


def test_a_repository_that_is_public_already_takes_no_private_push(folder: Path) -> None:
    """create_repo ignores ``private`` where the repository is there."""
    hub = FakeHub({"anna/chest": {"private": False, "files": set()}})
    with raises(RunError, "push.repository_public") as caught:
        push_form(folder, proof_of(folder), Push("anna/chest", force=True), hub)  # type: ignore[arg-type]
    assert caught.problem.place == "anna/chest"
    assert hub.names == ["repo_info"]


def test_a_repository_with_files_is_refused_unless_forced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": {".gitattributes", "thesis.pdf"}}})
    with raises(RunError, "push.repository_not_empty") as caught:
        push_form(folder, proof_of(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert caught.problem.value == ["thesis.pdf"]
    assert "upload_folder" not in hub.names
    with caplog.at_level(logging.WARNING, "toolkit"):
        push_form(folder, proof_of(folder), Push("anna/chest", force=True), hub)  # type: ignore[arg-type]
    assert "thesis.pdf" in hub.repos["anna/chest"]["files"]
    (warned,) = warnings_in(caplog)
    assert (warned.code, warned.place, warned.value) == ("push.files_kept", "anna/chest", 1)


def test_an_empty_repository_is_taken(folder: Path) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": {".gitattributes"}}})
    push_form(folder, proof_of(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert hub.names[-1] == "upload_folder"


@pytest.mark.parametrize("proof", [{"questions": 0}, {"questions": 16, "verified": False}, {}])
def test_what_was_not_proven_is_not_pushed(folder: Path, proof: Mapping[str, Any]) -> None:
    hub = FakeHub()
    with raises(ModelError, "push.not_verified"):
        push_form(folder, {**proof, "digest": digest_of(folder)}, Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert hub.calls == []


def test_weights_that_changed_since_their_proof_are_not_pushed_and_a_completed_card_is(folder: Path) -> None:
    hub, proof = FakeHub(), proof_of(folder)
    (folder / "README.md").write_text("with a word about the wards", encoding="utf-8")
    push_form(folder, proof, Push("anna/chest"), hub)  # type: ignore[arg-type]
    (folder / "model.safetensors").write_text("others", encoding="utf-8")
    with raises(ModelError, "push.files_changed"):
        push_form(folder, proof, Push("anna/other"), hub)  # type: ignore[arg-type]
    assert "anna/other" not in hub.repos


def test_what_the_hub_says_is_told_without_the_token(folder: Path, online: None) -> None:
    error = HfHubHTTPError(f"403 Forbidden for Bearer {TOKEN}\nmore", response=response(403))
    hub = FakeHub(refuses=error)
    with raises(RunError, "push.rejected") as caught:
        push_form(folder, proof_of(folder), Push("anna/chest"), hub)  # type: ignore[arg-type]
    assert caught.problem.place == "anna/chest"
    assert str(caught.problem.value).startswith("403 Forbidden")
    assert TOKEN not in str(caught.error)
    lost = FakeHub(refuses=httpx.ConnectError("no route"))
    with raises(RunError, "push.rejected") as caught:
        push_form(folder, proof_of(folder), Push("anna/chest"), lost)  # type: ignore[arg-type]
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
    tables = {
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


def test_a_run_pushes_what_it_has_proven_without_exporting_it_again(recipe: Recipe, hub: FakeHub) -> None:
    before = find_run(recipe.run_folder).record("export")
    record = export_again(recipe.run_folder, STAGES, delivery=Delivery(push="anna/small"))
    assert record == {**before, "pushed": "https://hub.invalid/anna/small/commit/1"}
    assert {"README.md", "adapter_model.safetensors"} <= hub.repos["anna/small"]["files"]


def test_what_was_changed_by_hand_is_exported_again_before_its_push(recipe: Recipe, hub: FakeHub) -> None:
    run = find_run(recipe.run_folder)
    file = run.path / "stages/export/adapter/adapter_config.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text("{}", encoding="utf-8")
    weights = run.weights_folder("sft")
    assert not is_proven(run, weights, "adapter")
    export_again(recipe.run_folder, STAGES, delivery=Delivery(push="anna/small"))
    assert set(file.read_text(encoding="utf-8").split()) == set(whole.split())  # peft orders its layers anew
    assert is_proven(run, weights, "adapter")
    assert not is_proven(run, weights, "merged")
    assert "anna/small" in hub.repos


@pytest.mark.parametrize("name", ["anna/-x", "anna/a--b", "anna/x.git", "anna/..", "anna/süß", f"anna/{'x' * 97}"])
def test_a_name_that_the_hub_refuses_is_told_before_anything_is_exported(
    recipe: Recipe, hub: FakeHub, name: str
) -> None:
    with raises(RunError, "push.name_rejected") as caught:
        export_again(recipe.run_folder, NOTHING, ['export.to=["adapter"]'], Delivery(push=name))
    assert (caught.problem.place, caught.problem.value) == ("--push", name)
    assert hub.calls == []


def test_what_will_not_be_verified_is_refused_before_it_is_written(
    recipe: Recipe, hub: FakeHub, tmp_path: Path
) -> None:
    settings = ['export.to=["merged"]', "export.verify=0"]
    for out in (None, tmp_path):
        with pytest.raises(RunError, match=r"only what was proven is pushed.*--no-verify"):
            export_again(recipe.run_folder, NOTHING, settings, Delivery(out, "anna/small"))
    assert hub.calls == []


def test_a_private_repository_stays_private_and_that_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = FakeHub({"anna/chest": {"private": True, "files": set()}})
    with caplog.at_level(logging.WARNING, "toolkit"):
        push_form(folder, proof_of(folder), Push("anna/chest", public=True), hub)  # type: ignore[arg-type]
    assert hub.repos["anna/chest"]["private"]
    (warned,) = warnings_in(caplog)
    assert (warned.code, warned.place) == ("push.repository_stays_private", "anna/chest")


def test_a_repository_takes_one_form(recipe: Recipe, hub: FakeHub) -> None:
    with pytest.raises(RunError) as caught:
        export_again(recipe.run_folder, STAGES, ['export.to=["adapter","merged"]'], Delivery(push="anna/small"))
    assert caught.value.value == "adapter, merged"
    assert hub.calls == []


def test_the_command_pushes_and_prints_the_address_and_no_token(recipe: Recipe, hub: FakeHub) -> None:
    found = CliRunner().invoke(app, ["export", str(recipe.run_folder), "--push", "anna/small"])
    assert found.exit_code == 0
    assert found.stdout.splitlines()[-1] == "pushed: https://hub.invalid/anna/small/commit/1"
    assert "serve it: vllm serve tiny --enable-lora" in found.stdout
    assert TOKEN not in found.output
    assert TOKEN not in find_run(recipe.run_folder).log_file.read_text(encoding="utf-8")


def test_public_alone_is_refused(recipe: Recipe) -> None:
    found = CliRunner().invoke(app, ["export", str(recipe.run_folder), "--public"])
    assert found.exit_code == 2
