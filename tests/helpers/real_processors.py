"""The processors of real models, without weights, out of the archive that lies with the real data."""

import tarfile
from pathlib import Path


def unpack_processors(shared_data: Path, folder: Path) -> Path:
    """``folder``, with one folder a model in it."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
    with tarfile.open(shared_data / "processors.tar.gz") as archive:
        archive.extractall(folder, **safe)  # type: ignore[arg-type]
    return folder
