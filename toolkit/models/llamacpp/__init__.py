"""llama.cpp in separate processes: conversion to GGUF, quantization, metadata, inference."""

from collections.abc import Collection

from toolkit.errors import MissingExtraError
from toolkit.models.llamacpp import child, convert
from toolkit.models.llamacpp.child import Child
from toolkit.models.llamacpp.files import find_gguf_pair, is_gguf, max_bytes
from toolkit.recipe import Export

__all__ = [
    "CONVERTED",
    "Child",
    "convert",
    "find_gguf_pair",
    "formats_of",
    "is_gguf",
    "max_bytes",
    "mergeable_formats",
    "missing_requirement",
    "require_for",
]

CONVERTED = ("f16", "bf16")
"""The quantizations that the converter writes. llama.cpp quantizes the others from f16."""


def require_for(quant: Collection[str], *, verify: bool) -> None:
    """Check before training that this machine can export to GGUF.

    Raises:
        MissingExtraError: The converter is not installed, or llama.cpp is needed and is not installed.
    """
    convert.require("GGUF")
    if quantized := [name for name in quant if name not in CONVERTED]:
        child.require(f"quantizing to {', '.join(quantized)}")
    if verify:
        child.require("verifying a GGUF file (skip it with --no-verify)")


def formats_of(section: Export) -> tuple[str, ...]:
    """Return the formats that an export writes here: ``to``, and ``optional`` if its packages are installed."""
    optional = [name for name in section.optional if name not in section.to]
    return (*section.to, *optional) if optional and missing_requirement(section) is None else section.to


def mergeable_formats(section: Export, *, quantized: bool) -> Export:
    """Return the section without an optional GGUF if the base is stored quantized.

    A GGUF is converted from merged weights, and such a base cannot be merged into. Formats in ``to`` are never removed.
    """
    needed = section.allow_dequantized or {"merged", "gguf"} & set(section.to)
    return section if needed or not quantized else section.model_copy(update={"optional": ()})


def missing_requirement(section: Export) -> str | None:
    """Return the message about a missing package that a GGUF of this export needs, or None."""
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        return str(error)
    return None
