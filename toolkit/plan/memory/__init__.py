"""A pure model of a stage's memory on a GPU: bytes by part, the peak, and what would make it fit."""

from toolkit.plan.memory.estimate import GIB, Estimate, Moment, estimate
from toolkit.plan.memory.knobs import first_fit
from toolkit.plan.memory.setting import Precision, RowSize, Setting

__all__ = ["GIB", "Estimate", "Moment", "Precision", "RowSize", "Setting", "estimate", "first_fit"]
