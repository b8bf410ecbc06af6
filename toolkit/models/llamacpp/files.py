"""GGUF files: quantizations and their sizes, pairs of text model and projector, and metadata."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantization: its label in file names on the Hub, its LLAMA_FTYPE in llama.h, and its bits per parameter."""

    label: str
    ftype: int
    bits: float


QUANTIZATIONS: Mapping[str, Quantization] = {
    "f16": Quantization("f16", 1, 16),
    "bf16": Quantization("bf16", 32, 16),
    "q8_0": Quantization("Q8_0", 7, 8.5),
    "q6_k": Quantization("Q6_K", 18, 6.6),
    "q5_k_m": Quantization("Q5_K_M", 17, 5.7),
    "q4_k_m": Quantization("Q4_K_M", 15, 4.9),
}
"""The supported quantizations, from the most to the least bits."""


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """Metadata of a text model and its projector: sizes in tokens, side of the vision tower's input in pixels."""

    architecture: str
    context: int
    vocabulary: int
    projector: str
    image_size: int | None


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected metadata of both files, from the source model and its processor."""

    vocabulary: int
    context: int
    bos: int | None
    ends: frozenset[int]
    """Tokens that may end a completion, the chat template's end of turn included."""
    chat_template: str
    starts_with_bos: bool
    """Whether a tokenized prompt begins with the BOS, from the template or the tokenizer."""
    image_size: int | None
    """Side in pixels of the vision tower's square input. None: any size."""


def max_bytes(parameters: int, quantizations: Collection[str]) -> int:
    """Return the largest disk space in bytes of an export of a model with ``parameters`` parameters.

    It includes the f16 file, from which the others are quantized, and the projector, at the bits of each file.
    """
    return sum(math.ceil(parameters * QUANTIZATIONS[name].bits / 8) for name in {"f16", *quantizations})


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


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the file's keys and values. Lists, such as the vocabulary, are replaced by their lengths.

    Raises:
        ModelError: The file is not a GGUF.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except (ValueError, OSError) as error:
        raise ModelError("model.not_gguf", "must be a GGUF file", place=path, value=str(error)) from error
    return {name: _value(field) for name, field in fields.items()}


def check_metadata(model: Path, mmproj: Path, quantization: str, expected: Expected) -> GgufMetadata:
    """Compare the metadata of both files with the model. Return a summary.

    Raises:
        ModelError: Metadata are missing or differ from the model.
    """
    text, vision = read_metadata(model), read_metadata(mmproj)
    problems = [*_text_problems(text, quantization, expected), *_vision_problems(vision, expected)]
    if problems:
        raise ModelError(
            "export.gguf_metadata_differs",
            "GGUF metadata must match the model",
            place=f"{model.name}, {mmproj.name}",
            value="; ".join(problems),
        )
    architecture = text["general.architecture"]
    return GgufMetadata(
        architecture=architecture,
        context=text[f"{architecture}.context_length"],
        vocabulary=text["tokenizer.ggml.tokens"],
        projector=str(vision.get("clip.projector_type") or vision.get("clip.vision.projector_type")),
        image_size=vision.get("clip.vision.image_size"),
    )


def _text_problems(found: Mapping[str, Any], quantization: str, expected: Expected) -> Iterator[str]:
    architecture = found.get("general.architecture")
    wanted = {
        "general.file_type": QUANTIZATIONS[quantization].ftype,
        "tokenizer.ggml.tokens": expected.vocabulary,
        f"{architecture}.context_length": expected.context,
        "tokenizer.chat_template": expected.chat_template,
    }
    if expected.bos is not None and expected.starts_with_bos:
        wanted["tokenizer.ggml.bos_token_id"] = expected.bos
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{name} is {_short(found.get(name))}, not {_short(value)}"
    # The key is optional. Without it, llama.cpp decides by the type of the tokenizer.
    if found.get("tokenizer.ggml.add_bos_token") and not expected.starts_with_bos:
        yield "tokenizer.ggml.add_bos_token is true, but the model's prompts begin without a BOS"
    stops = [found.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    if not set(stops) & expected.ends:
        yield f"the stop tokens {stops} include none of the model's {sorted(expected.ends)}"


def _vision_problems(found: Mapping[str, Any], expected: Expected) -> Iterator[str]:
    if found.get("general.architecture") != "clip":
        yield f"the projector's architecture is {found.get('general.architecture')}, not clip"
    if not (found.get("clip.projector_type") or found.get("clip.vision.projector_type")):
        yield "the projector has no type"
    size = found.get("clip.vision.image_size")
    if expected.image_size is not None and size != expected.image_size:
        yield f"clip.vision.image_size is {size}, not {expected.image_size} as in the processor"


def _value(field: Any) -> Any:
    if len(field.data) > 1:
        return len(field.data)
    value = field.contents()
    return len(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}…"
