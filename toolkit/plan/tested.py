"""Installed versions against those that were tested together, where constraints.txt is at hand."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import toolkit

MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "unsloth")
"""What can change a run's memory or its course."""


def compare_versions(constraints: Path | None = None) -> dict[str, Any]:
    """``tested``: the tested versions are known; ``different``: package -> installed and tested version.

    ``constraints`` is constraints.txt, which lies beside the package where it was installed with -e.
    """
    file = constraints or Path(toolkit.__file__).parent.parent / "constraints.txt"
    if not file.is_file():
        return {"tested": False, "different": {}}
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    tested = dict(line.split("==", 1) for line in lines if "==" in line)
    different = {}
    for package in MATTER:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if package in tested and installed.partition("+")[0] != tested[package]:
            different[package] = {"installed": installed, "tested": tested[package]}
    return {"tested": True, "different": different}
