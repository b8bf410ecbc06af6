"""The folders that a run writes into: can they be written, and how much is free."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.cache import cache_folder
from toolkit.doctor.finding import Finding
from toolkit.errors import ToolkitError

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
        "Hub cache", hub_cache(environment), 10, "a 4B model in 16 bits is 8.6 GB", "another folder in HF_HOME"
    )
    yield _own_cache(environment)
    yield check_folder(
        "working folder",
        Path.cwd(),
        20,
        "checkpoints, and merged weights of a 4B model (8.6 GB)",
        "another one, or run.folder in the recipe",
    )


def _own_cache(environment: Mapping[str, str]) -> Finding:
    name = "toolkit cache"
    try:
        folder = cache_folder(environment)
    except ToolkitError as error:
        return Finding(name, "problem", error.rule, error.remedy)
    return check_folder(name, folder, 5, "rows and reduced pictures", "another folder in TOOLKIT_CACHE")


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
        text = f"{folder} cannot be written ({error.strerror or error})"
        return Finding(name, "problem", text, f"Make it writable, or name {other}.")
    text = f"{folder}, {free:,.1f} GiB free"
    if free < FULL:
        return Finding(name, "problem", text, f"Make room, or name {other}: it holds {holds}.")
    if free < wanted:
        return Finding(
            name, "warning", text, f"{wanted:.0f} GiB are wanted: it holds {holds}. Make room, or name {other}."
        )
    return Finding(name, "good", text)


def _expanded(folder: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(folder)))  # noqa: PTH111  # Path's own raises without a home
