"""llama.cpp in separate processes: conversion to GGUF, quantisation, metadata, inference."""

from collections.abc import Collection
from pathlib import Path

from toolkit.errors import MissingExtraError, ModelError
from toolkit.models.llamacpp import child, convert
from toolkit.models.llamacpp.child import Child
from toolkit.models.llamacpp.convert import check_tensor_names
from toolkit.models.llamacpp.metadata import Expected, check_metadata, read_metadata
from toolkit.models.llamacpp.quantise import KINDS, max_bytes
from toolkit.recipe import Export

__all__ = [
    "CONVERTED",
    "KINDS",
    "Child",
    "Expected",
    "check_metadata",
    "check_tensor_names",
    "convert",
    "find_gguf_pair",
    "formats_of",
    "is_gguf",
    "max_bytes",
    "mergeable_formats",
    "missing_requirement",
    "read_metadata",
    "require_for",
]

CONVERTED = ("f16", "bf16")
"""The quantisations that the converter writes. llama.cpp quantises the others from f16."""


def require_for(quant: Collection[str], *, verify: bool) -> None:
    """Check before training that this machine can export to GGUF.

    Raises:
        MissingExtraError: The converter is not installed, or llama.cpp is needed and is not installed.
    """
    convert.require("GGUF")
    if quantised := [kind for kind in quant if kind not in CONVERTED]:
        child.require(f"quantising to {', '.join(quantised)}")
    if verify:
        child.require("verifying a GGUF file (skip it with --no-verify)")


def formats_of(section: Export) -> tuple[str, ...]:
    """Return the formats that an export writes here: ``to``, and ``optional`` if its packages are installed."""
    optional = [name for name in section.optional if name not in section.to]
    return (*section.to, *optional) if optional and missing_requirement(section) is None else section.to


def mergeable_formats(section: Export, *, quantised: bool) -> Export:
    """Return the section without an optional GGUF if the base is stored quantised.

    A GGUF is converted from merged weights, and such a base cannot be merged into. Formats in ``to`` are never removed.
    """
    needed = section.allow_dequantised or {"merged", "gguf"} & set(section.to)
    return section if needed or not quantised else section.model_copy(update={"optional": ()})


def missing_requirement(section: Export) -> str | None:
    """Return the message about a missing package that a GGUF of this export needs, or None."""
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        return str(error)
    return None


def is_gguf(weights: Path) -> bool:
    """Return whether these weights are for llama.cpp: a GGUF file, or a folder with GGUF files."""
    return weights.suffix == ".gguf" or (weights.is_dir() and any(weights.glob("*.gguf")))


def find_gguf_pair(weights: Path) -> tuple[Path, Path]:
    """Return the files of the text model and its projector.

    Args:
        weights: The text model's file, or a folder with exactly one.

    Raises:
        ModelError: One of the two is missing or ambiguous.
    """
    folder = weights if weights.is_dir() else weights.parent
    projectors = sorted(folder.glob("mmproj*.gguf"))
    models = sorted(set(folder.glob("*.gguf")) - set(projectors)) if weights.is_dir() else [weights]
    for code, name, found in (
        ("model.gguf_text_model_ambiguous", "text model", models),
        ("model.gguf_projector_ambiguous", "projector mmproj-NAME.gguf", projectors),
    ):
        if len(found) != 1 or not found[0].is_file():
            raise ModelError(
                code,
                f"a vision-language model in GGUF format must have exactly one {name}",
                place=weights,
                value=[file.name for file in found],
                remedy="Name the text model's file, with its projector in the same folder.",
            )
    return models[0], projectors[0]
