"""The folders that a run writes into: can they be written, and how much is free."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.diagnostics.finding import Finding
from toolkit.errors import ToolkitError
from toolkit.runfolder.cache import cache_folder

GIB = 2**30
FULL = 1.0
"""GiB; with less, nothing can be trained."""


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by its rules, without loading it."""
    if folder := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(folder)
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps the token."""
    above = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environment.get("HF_HOME") or os.path.join(above, "huggingface"))  # noqa: PTH118


def check_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The Hub's cache, the toolkit's cache, the working folder."""
    yield check_folder(
        "Hub cache", hub_cache(environment), 10, "models: a 4B model in 16 bits has 8.6 GB", "another folder in HF_HOME"
    )
    yield _own_cache(environment)
    yield check_folder(
        "working folder",
        Path.cwd(),
        20,
        "checkpoints, and merged weights of a 4B model (8.6 GB)",
        "another one, such as run.folder in the recipe",
    )


def _own_cache(environment: Mapping[str, str]) -> Finding:
    name = "toolkit cache"
    try:
        folder = cache_folder(environment)
    except ToolkitError as error:
        return Finding("doctor.cache_unknown", name, "problem", error.rule, error.remedy)
    return check_folder(name, folder, 5, "rows and resized images", "another folder in TOOLKIT_CACHE")


def check_folder(name: str, folder: Path, wanted: float, holds: str, other: str) -> Finding:
    """Whether ``folder`` can be written, and has room.

    Args:
        name: what the finding is called.
        folder: it need not exist: then the nearest folder above it counts. Nothing stays in it.
        wanted: GiB that should be free.
        holds: what goes there.
        other: how another folder is named.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free / GIB
    except OSError as error:
        text = f"{folder} is not writable ({error.strerror or error})"
        return Finding("doctor.folder_not_writable", name, "problem", text, f"Make it writable, or set {other}.")
    text = f"{folder}, {free:,.1f} GiB free"
    if free < FULL:
        remedy = f"Free disk space, or set {other}. The folder stores {holds}."
        return Finding("doctor.disk_full", name, "problem", text, remedy)
    if free < wanted:
        remedy = f"Free disk space up to {wanted:.0f} GiB, or set {other}. The folder stores {holds}."
        return Finding("doctor.disk_low", name, "warning", text, remedy)
    return Finding("doctor.folder", name, "good", text)


def _expanded(folder: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(folder)))  # noqa: PTH111  # Path's own raises without a home
