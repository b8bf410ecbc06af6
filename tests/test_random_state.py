"""The state of all random generators comes back, also through a checkpoint."""

import random
from pathlib import Path

import numpy as np
import torch

from toolkit.imagegen.checkpoints import load_tensors, save_tensors
from toolkit.models.random_state import RandomState


def draw() -> tuple[float, float, float, float]:
    """One number of each generator. NumPy's normals are drawn in pairs, so that its state holds a number, too."""
    return random.random(), float(np.random.random()), float(np.random.standard_normal()), float(torch.rand(()))


def test_every_generator_continues_from_a_saved_state(tmp_path: Path) -> None:
    np.random.standard_normal()
    state = RandomState.now()
    expected = [draw() for _ in range(3)]
    state.restore()
    assert [draw() for _ in range(3)] == expected
    save_tensors(tmp_path / "state.pt", state)
    load_tensors(tmp_path / "state.pt", RandomState, "").restore()
    assert [draw() for _ in range(3)] == expected
