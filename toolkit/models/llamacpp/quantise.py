"""Which quantisations llama.cpp writes, and the file names that the Hub has for them."""

import ctypes
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.models.llamacpp.library import Library, LlamaError, threads


@dataclass(frozen=True, slots=True)
class Kind:
    """One quantisation: its part of a file's name, its LLAMA_FTYPE in llama.h, and the bits that a weight takes."""

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
"""Those that are offered, from the finest to the coarsest."""


def max_bytes(weights: int, kinds: Collection[str]) -> int:
    """Bytes that a pair of files takes at most while it is written, of a model with so many weights.

    The f16 file counts too, from which the others are quantised. The projector is in each kind's share, at its bits.
    """
    return sum(math.ceil(weights * KINDS[kind].bits / 8) for kind in {"f16", *kinds})


def quantise(library: Library, source: Path, target: Path, kind: str) -> None:
    """Write ``source``, a GGUF in 16 bits, to ``target`` in ``kind``.

    Raises:
        LlamaError: llama.cpp could not.
    """
    options = library.llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = KINDS[kind].number, threads()
    failure = library.llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failure:
        raise LlamaError(f"llama.cpp cannot write {target.name} (code {failure})")
