"""Installed versions against those that were tested together."""

from collections.abc import Mapping

from toolkit.runfolder import TESTED, versions

MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "unsloth")
"""What can change a run's memory or its course."""


def compare_versions(installed: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """Package -> installed and tested version, where they differ; ``installed`` is what is installed here."""
    found = versions() if installed is None else installed
    return {
        package: {"installed": found[package], "tested": TESTED[package]}
        for package in MATTER
        if package in found and found[package].partition("+")[0] != TESTED[package]
    }
