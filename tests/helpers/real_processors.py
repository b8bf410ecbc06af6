"""Processors of real models, without weights, from the archive beside the real data."""

import tarfile
from pathlib import Path


def unpack_processors(shared_data: Path, folder: Path) -> Path:
    """Extract the processors into ``folder``, one folder per model, and return it."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
    with tarfile.open(shared_data / "processors.tar.gz") as archive:
        archive.extractall(folder, **safe)  # type: ignore[arg-type]
    return folder
