"""The tiny model: Gemma 3's architecture in a few MB, with trained weights, for a machine without a GPU."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
"""Weights, tokenizer and processor, as ``from_pretrained`` reads them. ``python -m toolkit.tiny.make`` makes them."""
