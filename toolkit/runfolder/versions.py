"""Versions of Python and of the libraries that can change a run's figures, read without importing the libraries."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from toolkit import __version__

TESTED_VERSIONS: Mapping[str, str] = {
    "torch": "2.10.0",
    "torchvision": "0.25.0",
    "transformers": "5.15.0",
    "trl": "1.9.2",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "4.8.5",
    "bitsandbytes": "0.50.2",
    "unsloth": "2026.10.7",
    "unsloth_zoo": "2026.10.7",
    "xformers": "0.0.35",
    "triton": "3.6.0",
    "opencv-python": "5.0.0.93",
    "numpy": "2.4.6",
    "pyarrow": "26.0.1",
    "pillow": "13.0.0",
    "pydicom": "3.0.2",
    "imagecodecs": "2026.3.6",
}
"""Distribution -> version that was tested with the others. A test compares the table with constraints.txt."""


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, the platform, this package and the tested distributions that are installed."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "toolkit": __version__}
    for package in TESTED_VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def untested_versions(installed: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """Return distribution -> installed and tested version, for the distributions whose versions differ.

    Args:
        installed: distribution -> version. None: the versions of this environment.
    """
    found = installed_versions() if installed is None else installed
    return {
        package: {"installed": found[package], "tested": tested}
        for package, tested in TESTED_VERSIONS.items()
        if package in found and found[package].partition("+")[0] != tested
    }


def now() -> str:
    """Return the time in UTC to the millisecond, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
