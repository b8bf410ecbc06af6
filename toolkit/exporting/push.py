"""An export to the Hub: what was proven and nothing else, private unless it is said otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from toolkit.errors import ModelError, RunError, warn
from toolkit.exporting.card.facts import is_verified
from toolkit.exporting.extra_files import digest_of
from toolkit.exporting.public_names import is_hub_name
from toolkit.runfolder import EXPORT, Record, RunFolder, hide_secrets

OWN_FILES = frozenset({".gitattributes"})
"""What the Hub puts into every repository by itself."""
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Push:
    """Where to: ``owner/name``; ``force``: also into a repository that has files."""

    repo: str
    public: bool = False
    force: bool = False


def check_push(push: Push) -> None:
    """See that a push can begin, before hours are spent on what it would push.

    Raises:
        RunError: the name is none, this machine is offline, or nobody is logged in.
    """
    if not is_hub_name(push.repo):
        raise RunError(
            "push.name_malformed", "a repository name must have the format owner/name", place="--push", value=push.repo
        )
    try:
        validate_repo_id(push.repo)
    except HFValidationError as error:
        raise RunError(
            "push.name_rejected", f"the Hub must accept the repository name: {error}", place="--push", value=push.repo
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise RunError(
            "push.offline",
            "a push needs the network, but offline mode is on",
            place="--push",
            remedy="Unset HF_HUB_OFFLINE.",
        )
    if not get_token():
        raise RunError(
            "push.token_missing",
            "a push needs a Hub token with write access",
            place="--push",
            remedy="Run `hf auth login` once, or set HF_TOKEN.",
        )


def is_proven(run: RunFolder, weights: Path, form: str) -> bool:
    """Whether these weights stand exported in this form, proven, and as they were when they were proven."""
    record: Record = run.record(EXPORT) if run.is_done(EXPORT) else {}
    if form not in record or record["weights"] != run.relative(weights) or not is_verified(record[form]):
        return False
    folder = run.path / record[form]["folder"]
    return folder.is_dir() and bool(digest_of(folder) == record[form].get("digest"))


def push_form(folder: Path, proof: Mapping[str, Any], push: Push, api: HfApi | None = None) -> str:
    """Push the form in ``folder``, and give the address of the commit.

    Args:
        folder: what the export has written.
        proof: the export's record of it.
        push: where to, and how.
        api: the Hub's interface; default: huggingface_hub's own, with the token that it finds.

    Raises:
        ModelError: the form was not proven, or its files have changed since then.
        RunError: the Hub refuses, or its repository is public or has files, and that was not said.
    """
    _refuse_unproven(folder, proof)
    return upload(folder, f"Weights as {folder.name}, with their card", push, api)


def upload(folder: Path, message: str, push: Push, api: HfApi | None = None) -> str:
    """Upload a folder that was checked, and return the address of the commit.

    Args:
        folder: all of its files are uploaded.
        message: of the commit.
        push: where to, and how.
        api: as in ``push_form``.

    Raises:
        RunError: the Hub refuses, or its repository is public or has files, and that was not said.
    """
    api = api or HfApi()
    try:
        _refuse_repository(api, push)
        api.create_repo(push.repo, private=not push.public, repo_type="model", exist_ok=True)
        commit = api.upload_folder(
            repo_id=push.repo,
            folder_path=folder,
            repo_type="model",
            commit_message=message,
        )
    except (httpx.HTTPError, OSError) as error:
        raise RunError(
            "push.rejected",
            "the Hub must accept the push",
            place=push.repo,
            value=hide_secrets((str(error).strip() or type(error).__name__).splitlines()[0])[:200],
            remedy="Check the name, the token's rights and the connection. Then run the same command again.",
        ) from error
    return str(commit.commit_url)


def _refuse_unproven(folder: Path, proof: Mapping[str, Any]) -> None:
    if not is_verified(proof):
        raise ModelError(
            "push.not_verified",
            "only verified weights can be pushed",
            place=folder,
            remedy="Export again with verification.",
        )
    if digest_of(folder) != proof.get("digest"):
        raise ModelError(
            "push.files_changed",
            "only README.md may change after verification, but other files did",
            place=folder,
            remedy="Export again.",
        )


def _refuse_repository(api: HfApi, push: Push) -> None:
    """A repository that is there keeps its visibility, whatever a push says, and its other files."""
    try:
        private = bool(api.repo_info(push.repo, repo_type="model").private)
    except RepositoryNotFoundError:
        return
    if not private and not push.public:
        raise RunError(
            "push.repository_public",
            "a private push needs a private repository, but this one is public",
            place=push.repo,
            remedy="Add --public, make it private on the Hub, or choose another name.",
        )
    if private and push.public:
        warn(
            "push.repository_stays_private",
            "the existing repository is private and stays private",
            place=push.repo,
            remedy="Change its visibility in its settings on the Hub.",
        )
    files = sorted(set(api.list_repo_files(push.repo, repo_type="model")) - OWN_FILES)
    if files and not push.force:
        raise RunError(
            "push.repository_not_empty",
            "the repository must be empty, because a push may replace its files",
            place=push.repo,
            value=files[:MOST_NAMED],
            remedy="Choose another name, or add --force. Files with other names stay, and the history keeps the rest.",
        )
    if files:
        warn(
            "push.files_kept",
            "the number of other files in the repository, which stay, should be 0",
            place=push.repo,
            value=len(files),
        )
