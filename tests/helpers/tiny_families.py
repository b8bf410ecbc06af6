"""Small models of many families with random weights: the real classes of transformers, with tokenizers of their own.

Each family has the layout of pixels, the image tokens and the token types of the real one. Nothing is read from a file.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from tests.helpers.tiny_grids import glm4v, qwen2_5_vl, qwen3_5, qwen3_vl
from tests.helpers.tiny_parts import Parts, Words
from tests.helpers.tiny_tiles import idefics, internvl, lfm2_vl, llama4, ovis2
from tests.helpers.tiny_whole_images import gemma4, llava, llava_next, llava_onevision, mistral3, mllama, paligemma


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """A family of the matrix.

    Attributes:
        name: Its name for the documentation.
        build: Returns its processor and configuration with the words of a tokenizer.
        package: A package that it needs beside ours.
    """

    name: str
    build: Callable[[Words], Parts]
    package: str = ""

    def parts(self) -> Parts:
        """Return processor and configuration with a small vocabulary."""
        return self.build(Words())

    @property
    def installed(self) -> bool:
        return not self.package or find_spec(self.package) is not None


TINY: Mapping[str, TinyFamily] = {
    "gemma4": TinyFamily("Gemma 4", gemma4),
    "qwen2_5_vl": TinyFamily("Qwen2.5-VL", qwen2_5_vl),
    "qwen3_vl": TinyFamily("Qwen3-VL", qwen3_vl),
    "qwen3_5": TinyFamily("Qwen3.5, Qwen3.6", qwen3_5),
    "llava": TinyFamily("LLaVA 1.5", llava),
    "llava_next": TinyFamily("LLaVA-NeXT", llava_next),
    "llava_onevision": TinyFamily("LLaVA-OneVision", llava_onevision),
    "smolvlm": TinyFamily("SmolVLM2", functools.partial(idefics, family="smolvlm", tiles=False), "num2words"),
    "idefics3": TinyFamily("Idefics3", functools.partial(idefics, family="idefics3", tiles=True)),
    "internvl": TinyFamily("InternVL 3.5", internvl),
    "mistral3": TinyFamily("Mistral 3, Ministral 3", mistral3),
    "paligemma": TinyFamily("PaliGemma 2", paligemma),
    "lfm2_vl": TinyFamily("LFM2-VL", lfm2_vl),
    "glm4v": TinyFamily("GLM-4.1V", glm4v),
    "mllama": TinyFamily("Llama 3.2 Vision", mllama),
    "llama4": TinyFamily("Llama 4", llama4),
    "ovis2": TinyFamily("Ovis2", ovis2),
}
"""Families by model_type. Gemma 3 is the model that ships with the package."""


def build_tiny(family: str, folder: Path, words: Words | None = None) -> Path:
    """Save a model of a family with random weights and its processor in a folder. Return the folder.

    Args:
        family: A key of ``TINY``, the ``model_type``.
        folder: An existing folder.
        words: The words of the tokenizer. None: a small vocabulary.
    """
    parts = TINY[family].build(words or Words())
    path = folder / family
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(parts.config, dtype=torch.float32)
    model.save_pretrained(path)
    parts.processor.save_pretrained(path)
    return path
