"""The state of the global random generators, so that a resumed stage draws the same numbers."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators that ``RandomState`` holds. The seed must be below 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass(frozen=True, slots=True, eq=False)
class RandomState:
    """The generator states of Python, NumPy, and torch on the CPU and the current CUDA device.

    All values are plain ones or tensors, which ``torch.load(weights_only=True)`` accepts.

    Attributes:
        python: the state of ``random``.
        numpy: the state of ``numpy.random``, with its 624 words as a tensor.
        cpu: the state of torch on the CPU.
        cuda: the state of torch on the current CUDA device. None without CUDA.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls) -> "RandomState":
        """Return the current state. It takes microseconds and does not synchronise with the GPU."""
        name, words, *rest = np.random.get_state()
        numpy = (name, torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest)
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(random.getstate(), numpy, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Restore the generators, so that they draw the same numbers as after ``now``."""
        random.setstate(self.python)
        name, words, *rest = self.numpy
        np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
