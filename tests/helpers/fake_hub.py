"""A fake of the Hub: its repositories with their files, and the calls of a push."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

TOKEN = "hf_" + "PlantedPlantedPlanted"


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "https://hub.invalid"))


@dataclass
class FakeHub:
    """Repositories with files. Every call is recorded, bound to the signature of HfApi."""

    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    rejects: Exception | None = None

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
        if self.rejects:
            raise self.rejects
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
