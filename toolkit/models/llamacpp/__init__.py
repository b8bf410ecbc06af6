"""llama.cpp, in processes of its own: converts weights to GGUF, quantises them, reads them back, and asks them."""

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
"""The kinds that the converter writes itself; the others are quantised from f16 by llama.cpp."""


def require_for(quant: Collection[str], *, verify: bool) -> None:
    """See that an export to GGUF can be done here: it must not turn out after hours of training.

    Raises:
        MissingExtraError: the converter is not installed, or llama.cpp is not, and is needed to quantise or to verify.
    """
    convert.require("GGUF")
    if coarse := [kind for kind in quant if kind not in CONVERTED]:
        child.require(f"quantising to {', '.join(coarse)}")
    if verify:
        child.require("verifying a GGUF file (skip it with --no-verify)")


def formats_of(section: Export) -> tuple[str, ...]:
    """The forms that an export writes here: ``to``, and what is ``optional`` where what it needs is installed."""
    optional = [form for form in section.optional if form not in section.to]
    return (*section.to, *optional) if optional and missing_requirement(section) is None else section.to


def mergeable_formats(section: Export, *, quantised: bool) -> Export:
    """The section without an optional GGUF that cannot be made; ``quantised``: how the base's weights are stored.

    Such a base gives no merged weights, which a GGUF is made from. A form that ``to`` names is never left out.
    """
    needed = section.allow_dequantised or {"merged", "gguf"} & set(section.to)
    return section if needed or not quantised else section.model_copy(update={"optional": ()})


def missing_requirement(section: Export) -> str | None:
    """What a GGUF of this export needs and is not installed; None: nothing."""
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        return str(error)
    return None


def is_gguf(weights: Path) -> bool:
    """Whether these weights are for llama.cpp: a GGUF file, or a folder that holds some."""
    return weights.suffix == ".gguf" or (weights.is_dir() and any(weights.glob("*.gguf")))


def find_gguf_pair(weights: Path) -> tuple[Path, Path]:
    """The text model and the projector that lie together.

    Args:
        weights: a text model's file, or a folder that holds exactly one.

    Raises:
        ModelError: one of the two is not there, or there are several to choose from.
    """
    folder = weights if weights.is_dir() else weights.parent
    projectors = sorted(folder.glob("mmproj*.gguf"))
    models = sorted(set(folder.glob("*.gguf")) - set(projectors)) if weights.is_dir() else [weights]
    for code, what, found in (
        ("model.gguf_text_model_ambiguous", "text model", models),
        ("model.gguf_projector_ambiguous", "projector mmproj-NAME.gguf", projectors),
    ):
        if len(found) != 1 or not found[0].is_file():
            raise ModelError(
                code,
                f"a vision-language model in GGUF format must have exactly one {what}",
                place=weights,
                value=[file.name for file in found],
                remedy="Name the text model's file, with its projector in the same folder.",
            )
    return models[0], projectors[0]
