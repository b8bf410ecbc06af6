"""The tiny model: Gemma 3's architecture in a few MB, with trained weights, for a machine without a GPU."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
"""Checkpoint folder for ``from_pretrained``. ``tests/tiny_training`` in the repository has the code that trained it."""
