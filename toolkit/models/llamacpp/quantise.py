"""Quantisations of llama.cpp and their names in file names on the Hub."""

import ctypes
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.models.llamacpp.library import Library, LlamaError, threads


@dataclass(frozen=True, slots=True)
class Kind:
    """One quantisation: its label in file names, its LLAMA_FTYPE in llama.h, and its bits per parameter."""

    label: str
    number: int
    bits: float


KINDS: Mapping[str, Kind] = {
    "f16": Kind("f16", 1, 16),
    "bf16": Kind("bf16", 32, 16),
    "q8_0": Kind("Q8_0", 7, 8.5),
    "q6_k": Kind("Q6_K", 18, 6.6),
    "q5_k_m": Kind("Q5_K_M", 17, 5.7),
    "q4_k_m": Kind("Q4_K_M", 15, 4.9),
}
"""The supported quantisations, from the most to the least bits."""


def max_bytes(parameters: int, kinds: Collection[str]) -> int:
    """Return the largest disk space in bytes of an export of a model with ``parameters`` parameters.

    It includes the f16 file, from which the others are quantised, and the projector, at the bits of each kind.
    """
    return sum(math.ceil(parameters * KINDS[kind].bits / 8) for kind in {"f16", *kinds})


def quantise(library: Library, source: Path, target: Path, kind: str) -> None:
    """Write ``source``, a GGUF in 16 bits, to ``target`` in ``kind``.

    Raises:
        LlamaError: llama.cpp failed.
    """
    options = library.llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = KINDS[kind].number, threads()
    failure = library.llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failure:
        raise LlamaError(f"llama.cpp cannot write {target.name} (code {failure})")
