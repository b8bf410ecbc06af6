"""What a run's checkpoints hold: ``epoch_<n>/{selector,policy,synthetic}_checkpoint.pt``, counted through all stages.

In stage 1 ``synthetic`` only names the generator's base. In stage 2 it has the update of one method, and selector and
policy are those of that round. Frozen encoders and the base are never stored.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from toolkit.imagegen.checkpoints import SYNTHETIC, Checkpoints, load_part, newest_epoch, open_checkpoints
from toolkit.runfolder import RunFolder

SELECTOR, POLICY = "selector_checkpoint.pt", "policy_checkpoint.pt"
PARTS = (SELECTOR, POLICY, SYNTHETIC)
FOLDER = "checkpoints"


def open_run_checkpoints(run: RunFolder, keep_last: int) -> Checkpoints:
    """Return the checkpoints of a run, below ``checkpoints/<timestamp>``."""
    return open_checkpoints(run.path / FOLDER, keep_last, datetime.now())


def last_epoch(checkpoints: Checkpoints) -> int:
    """Return the newest complete epoch, 0 before the first."""
    return newest_epoch(checkpoints, PARTS) or 0


def load_epoch(checkpoints: Checkpoints, epoch: int, part: str) -> dict[str, Any]:
    """Return a part of an epoch."""
    return load_part(checkpoints, epoch, part)


def stage_one_part(epoch: int, base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the ``synthetic`` part of stage 1, in which the generator is its base."""
    return {SYNTHETIC: {"epoch": epoch, "stage": 1, "base": dict(base)}}
