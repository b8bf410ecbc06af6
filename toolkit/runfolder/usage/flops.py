"""Floating-point operations of a module's matrix products, by formula.

For each position, a matrix with n parameters takes 2 n operations in the forward pass, 2 n in the backward pass for the
gradient of its input, and 2 n more if it is trained (Kaplan et al. 2020, arXiv 2001.08361, 2.1). Gradient checkpointing
repeats the forward pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a module that every position is multiplied with, and how many of them are trained."""

    all: int
    trained: int = 0

    def forward(self, positions: float) -> float:
        """Return the FLOPs of a forward pass."""
        return 2.0 * self.all * positions

    def backward(self, positions: float) -> float:
        """Return the FLOPs of a backward pass."""
        return 2.0 * (self.all + self.trained) * positions

    def both(self, positions: float, *, checkpointing: bool) -> float:
        """Return the FLOPs of a forward and a backward pass."""
        again = self.forward(positions) if checkpointing else 0.0
        return self.forward(positions) + again + self.backward(positions)
