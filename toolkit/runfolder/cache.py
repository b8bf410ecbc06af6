"""The folder for caches: row indices, resized images and token counts of plans."""

import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import ToolkitError


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return ``$TOOLKIT_CACHE``, or ``~/.cache/toolkit`` if the variable is not set.

    Raises:
        ToolkitError: the user has no home directory, as in a container without HOME.
    """
    if folder := environment.get("TOOLKIT_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "toolkit"
    except RuntimeError as error:
        raise ToolkitError(
            "run.cache_folder_unknown",
            "the cache folder must be known, but this user has no home directory",
            place="cache",
            remedy="Set TOOLKIT_CACHE or HOME.",
        ) from error
