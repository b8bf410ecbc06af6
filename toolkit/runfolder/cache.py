"""Where everything is kept that can be made again: indices of rows, reduced pictures, what plans counted."""

import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import ToolkitError


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$TOOLKIT_CACHE``, else ``~/.cache/toolkit``.

    Raises:
        ToolkitError: nothing says where home is, as in a container whose user has no entry and no HOME.
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
