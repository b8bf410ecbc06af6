"""The dry run: a recipe's way through every stage with the tiny model and a few rows, before anything is spent."""

from toolkit.pipeline.dry_run.derive import derive_dry_run
from toolkit.pipeline.dry_run.perform import DryRunResult, dry_run

__all__ = ["DryRunResult", "derive_dry_run", "dry_run"]
