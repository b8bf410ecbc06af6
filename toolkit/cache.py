"""Where everything is kept that can be made again: indices of rows, reduced pictures, what plans counted."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$TOOLKIT_CACHE``, else ``~/.cache/toolkit``."""
    return Path(environment.get("TOOLKIT_CACHE") or Path.home() / ".cache" / "toolkit")
