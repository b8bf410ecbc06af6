"""GPU memory of a stage: bytes by part, the peak, and the settings that make the stage fit."""

from toolkit.planning.memory.estimate import Estimate, Moment, estimate, first_fit

__all__ = ["Estimate", "Moment", "estimate", "first_fit"]
