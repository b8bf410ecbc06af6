"""The dry run: every stage of a recipe with the tiny model on a few rows."""

from toolkit.pipeline.dry_run.derive import derive_dry_run
from toolkit.pipeline.dry_run.perform import DryRunResult, dry_run

__all__ = ["DryRunResult", "derive_dry_run", "dry_run"]
