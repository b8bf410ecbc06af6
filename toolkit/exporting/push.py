"""Push a verified export to the Hub. The repository is private unless the user says otherwise."""

from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from toolkit.errors import ModelError, RunError, warn
from toolkit.exporting.atomic_output import digest_of
from toolkit.exporting.public_names import is_hub_name
from toolkit.exporting.results import ExportResult, FormatExport
from toolkit.runfolder import EXPORT, RunFolder, hide_secrets

OWN_FILES = frozenset({".gitattributes"})
"""Files that the Hub adds to every repository."""
MAX_NAMED = 5
"""Files that an error lists."""


@dataclass(frozen=True, slots=True)
class Push:
    """The target of a push.

    Attributes:
        repo: ``owner/name``.
        public: create a public repository.
        force: push to a repository that has files.
    """

    repo: str
    public: bool = False
    force: bool = False


def check_push(push: Push) -> None:
    """Check that a push can start, before hours are spent on the export.

    Raises:
        RunError: the name is invalid, this machine is offline, or there is no Hub token.
    """
    if not is_hub_name(push.repo):
        rule, remedy = "a repository name must have the format owner/name", "Correct the name."
        raise RunError("push.name_malformed", rule, place="--push", value=push.repo, remedy=remedy)
    try:
        validate_repo_id(push.repo)
    except HFValidationError as error:
        rule, remedy = f"the Hub must accept the repository name: {error}", "Choose another name."
        raise RunError("push.name_rejected", rule, place="--push", value=push.repo, remedy=remedy) from error
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


def is_verified_export(run: RunFolder, weights: Path, name: str) -> bool:
    """Return whether the run has a verified export of these weights whose files are unchanged."""
    found = run.result(EXPORT, ExportResult) if run.is_done(EXPORT) else None
    if found is None or found.weights != run.relative(weights):
        return False
    export = found.formats.get(name)
    if export is None or export.verification is None:
        return False
    folder = run.path / export.folder
    return folder.is_dir() and digest_of(folder) == export.digest


def push_format(folder: Path, export: FormatExport, push: Push, api: HfApi | None = None) -> str:
    """Push an exported format, and return the address of the commit.

    Args:
        folder: the folder that the export wrote.
        export: the format in this folder.
        push: the target.
        api: the client of the Hub. Default: that of this machine's login.

    Raises:
        ModelError: the export is not verified, or its files changed after verification.
        RunError: the Hub rejects the push, or the repository is public or has files and the push does not allow it.
    """
    _require_verified(folder, export)
    return upload(folder, f"Weights ({folder.name}) and model card", push, api)


def upload(folder: Path, message: str, push: Push, api: HfApi | None = None) -> str:
    """Upload a folder, and return the address of the commit.

    Args:
        folder: the folder, of which all files are uploaded.
        message: the commit message.
        push: the target.
        api: as in ``push_format``.

    Raises:
        RunError: the Hub rejects the push, or the repository is public or has files and the push does not allow it.
    """
    api = api or HfApi()
    try:
        _check_repository(api, push)
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


def _require_verified(folder: Path, export: FormatExport) -> None:
    if export.verification is None:
        raise ModelError(
            "push.not_verified",
            "only verified weights can be pushed",
            place=folder,
            remedy="Export again with verification.",
        )
    if digest_of(folder) != export.digest:
        raise ModelError(
            "push.files_changed",
            "only README.md may change after verification, but other files did",
            place=folder,
            remedy="Export again.",
        )


def _check_repository(api: HfApi, push: Push) -> None:
    """Check an existing repository, which keeps its visibility and its other files."""
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
            value=files[:MAX_NAMED],
            remedy="Choose another name, or add --force. Files with other names stay, and the history keeps the rest.",
        )
    if files:
        warn(
            "push.files_kept",
            "the number of other files in the repository, which stay, should be 0",
            place=push.repo,
            value=len(files),
            remedy="Delete outdated files on the Hub.",
        )
