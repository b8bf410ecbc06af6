"""A pure model of a stage's memory on a GPU: bytes by part, the peak, and what would make it fit."""

from toolkit.planning.memory.estimate import GIB, Estimate, Moment, estimate
from toolkit.planning.memory.knobs import first_fit
from toolkit.planning.memory.setting import Precision, RowSize, Setting

__all__ = ["GIB", "Estimate", "Moment", "Precision", "RowSize", "Setting", "estimate", "first_fit"]
