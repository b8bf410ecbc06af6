"""The rehearsal: a recipe's way through every stage with the tiny model and a few rows, before anything is spent."""

from toolkit.pipeline.dry_run.derive import rehearsal
from toolkit.pipeline.dry_run.perform import Rehearsed, rehearse

__all__ = ["Rehearsed", "rehearsal", "rehearse"]
