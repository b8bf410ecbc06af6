"""Which versions a run was made with, without importing any of them."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "toolkit",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "unsloth",
    "bitsandbytes",
    "xformers",
    "numpy",
    "pyarrow",
    "pillow",
    "opencv-python",
    "pydicom",
)
"""What can change a run's numbers."""


def versions() -> dict[str, str]:
    """Python's version, the platform and each of ``PACKAGES`` that is installed -> version."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, to the millisecond, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
