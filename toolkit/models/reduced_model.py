"""A small random model of a real architecture, with the model's own processor, for checks without its weights.

It has few layers, at least one of each kind, and few attention heads. Head sizes, vocabulary, patches, merges and image
tokens stay, because positions and processor depend on them. Widths that several parts have in common are not known for
every architecture. So the narrowest of several reductions is used with which a plain forward pass of transformers
succeeds.
"""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping

from toolkit.errors import ModelError
from toolkit.models.chat_template import render_prompt
from toolkit.models.loading import UNUSABLE
from toolkit.models.messages import conversation
from toolkit.models.model_config import read_configuration

MAX_BYTES = 2_500_000_000
"""Maximum size of the parameters in 32 bits. Training and merging need about twice as much."""
FLOAT = 4
"""Bytes of a parameter in 32 bits."""
LANGUAGE_LAYERS, TOWER_LAYERS = 2, 3
"""Layers of a language model and of a tower after the reduction. llama.cpp's converter finds the third part of the
projector of Qwen2.5-VL only if its tower has three layers."""
HEADS, EXPERTS, INNER = 2, 4, 2
"""Attention heads, experts and the ratio of the MLP's width to the hidden size after the reduction."""
PER_LAYER_INPUT = 64
"""Width of the embeddings of each layer (Gemma 3n, Gemma 4)."""
STD = 0.02
"""Standard deviation of parameters that transformers initialises with zeros, as gates without which images have no
effect."""

LAYERS = ("num_hidden_layers", "depth", "num_layers")
"""Fields with the number of layers."""
LAYER_NUMBERS = ("deepstack_visual_indexes", "fullatt_block_indexes", "cross_attention_layers", "mlp_only_layers")
"""Fields with numbers of layers."""
FEATURE_LAYERS = ("intermediate_layers_indices", "vision_feature_layer")
"""Fields with numbers of layers whose features are concatenated, so that their count stays."""
HEAD_COUNTS = ("num_attention_heads", "num_heads", "attention_heads")
TEXT_WIDTHS = ("out_hidden_size", "projection_dim", "projector_output_dim", "hidden_size")
"""Fields outside of the language model with its hidden size."""
INNER_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "top_k_experts", "moe_topk")
SMALL_FILES = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
"""Suffixes of the files of processor and tokenizer."""
NARROW = (("text_config", "vision_config"), ("text_config",), ())
"""Sections whose widths are reduced, in the order in which they are tried."""

Fields = dict[str, Any]
QUESTION = "What does the image show?"
SIDE = 224
"""Side of the image of the forward pass in pixels."""


@dataclass(frozen=True, slots=True)
class ReducedModel:
    """The model that was written: its number of parameters, and the sections with reduced widths."""

    parameters: int
    narrow: tuple[str, ...]


def write_reduced(source: Path, target: Path, processor: Any) -> ReducedModel:
    """Write a small random model of the architecture in ``source``, and copies of the other files, to ``target``.

    The weights are in 16 bits under the names of the Hub.

    Args:
        source: a folder with config.json and the files of the processor.
        target: the folder to write to.
        processor: the processor of the model.

    Raises:
        ModelError: transformers does not know the architecture, every reduction is too large
            (``model.reduced_too_large``), or none passes a forward pass (``model.forward_fails``).
    """
    fields = _whole(source)
    failure = large = None
    for narrow in NARROW:
        reduced = reduce_fields(fields, narrow)
        try:
            parameters = _count(reduced)
            if FLOAT * parameters > MAX_BYTES:
                large = _too_large(source, parameters)
                continue
            model = _random_model(reduced)
            _forward(model, processor)
        except UNUSABLE as error:
            failure = _unusable(source, error)
            continue
        target.mkdir(parents=True)
        _save(model, reduced, target)
        _copy_files(source, target)
        del model
        gc.collect()
        return ReducedModel(parameters, narrow)
    # A failure of a narrow model says nothing about the architecture if the real widths could not be tried.
    raise large or failure or AssertionError("there is at least one reduction")


def reduce_fields(fields: Mapping[str, Any], narrow: Sequence[str]) -> Fields:
    """Return a configuration with few layers, and with few heads and experts in the sections ``narrow``.

    Args:
        fields: fields of config.json, with the defaults of transformers filled in.
        narrow: names of sections.
    """
    found: Fields = json.loads(json.dumps(fields))
    found.pop("quantization_config", None)
    text = found.get("text_config") or {}
    before = text.get("hidden_size")
    for name, section in [*_sections(found)]:
        _reduce_layers(section, LANGUAGE_LAYERS if name == "text_config" else TOWER_LAYERS)
        if name in narrow:
            _reduce_widths(section)
    layers = _layers(found.get("vision_config") or {}) or 0
    for name in FEATURE_LAYERS:
        _clip(found, name, layers)
    if "text_config" in narrow:
        for section in (found, *(one for name, one in _sections(found) if name != "text_config")):
            _replace_text_width(section, before, text.get("hidden_size"))
    return found


def _whole(source: Path) -> Fields:
    """Return the fields of config.json with the defaults of transformers. Fields that it drops stay."""
    fields = read_configuration(source / "config.json")
    try:
        known = AutoConfig.from_pretrained(source).to_dict()
    except (*UNUSABLE, OSError) as error:
        raise _unusable(source, error) from error
    return _filled(fields, known)


def _filled(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> Fields:
    found: Fields = {**defaults, **own}
    for name, value in found.items():
        other = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found[name] = _filled(value, other)
        elif value is None:
            found[name] = other
    found.pop("per_layer_config", None)  # it follows from the other fields
    return found


def _sections(fields: Fields) -> Iterator[tuple[str, Fields]]:
    """Yield the sections with a number of layers: language model, vision tower and others."""
    for name, value in fields.items():
        if isinstance(value, dict) and _layers(value) is not None:
            yield name, value


def _layers(section: Mapping[str, Any]) -> int | None:
    return next((section[name] for name in LAYERS if isinstance(section.get(name), int)), None)


def _reduce_layers(section: Fields, least: int) -> None:
    """Keep ``least`` layers, or one of each kind. Those that reuse keys and values of others are kinds of their own."""
    count = _layers(section) or 0
    if count <= least:
        return
    kept = _kept_layers(section, count, least)
    for name in LAYERS:
        if section.get(name) == count:
            section[name] = len(kept)
    for name in [*section]:
        value = section[name]
        if name in LAYER_NUMBERS and isinstance(value, list) and value:
            section[name] = [place for place, layer in enumerate(kept) if layer in value] or [len(kept) - 1]
        elif isinstance(value, list) and len(value) == count and ("layer" in name or count > len("rgb")):
            section[name] = [value[layer] for layer in kept]
    _clip(section, "intermediate_layers_indices", len(kept))
    if shared := section.get("num_kv_shared_layers"):
        section["num_kv_shared_layers"] = sum(layer >= count - shared for layer in kept)


def _kept_layers(section: Mapping[str, Any], count: int, least: int) -> list[int]:
    kinds = section.get("layer_types") or [""] * count
    crossed = section.get("cross_attention_layers") or ()
    shared = section.get("num_kv_shared_layers") or 0
    first: dict[tuple[str, bool, bool], int] = {}
    for layer, kind in enumerate(kinds[:count]):
        first.setdefault((str(kind), layer in crossed, layer >= count - shared), layer)
    needed = [*first.values(), *(layer for layer in range(count) if layer not in first.values())]
    return sorted(needed[: max(least, len(first))])


def _clip(section: Fields, name: str, layers: int) -> None:
    value = section.get(name)
    if isinstance(value, list):
        section[name] = [min(one, layers - 1) for one in value]
    elif isinstance(value, int) and layers:
        section[name] = min(value, layers - 1) if value >= 0 else max(value, -layers)


def _reduce_widths(section: Fields) -> None:
    """Keep two heads of the same size, and reduce the hidden size, the MLP and the experts."""
    name = next((one for one in HEAD_COUNTS if isinstance(section.get(one), int)), None)
    width = "embed_dim" if "embed_dim" in section else "hidden_size"
    if name is None or not isinstance(section.get(width), int):
        return
    heads = section[name]
    size = section.get("head_dim") or section[width] // heads
    if section.get("num_key_value_heads"):
        section["num_key_value_heads"] = min(HEADS, heads) if section["num_key_value_heads"] == heads else 1
    if section.get("num_global_key_value_heads"):
        section["num_global_key_value_heads"] = 1
    section[name] = min(HEADS, heads)
    section[width] = section[name] * size
    _reduce_inner(section, INNER * section[width])
    if keys := section.get("linear_num_key_heads"):  # gated delta layers of Qwen3.5
        section["linear_num_value_heads"] = HEADS * max(1, section["linear_num_value_heads"] // keys)
        section["linear_num_key_heads"] = HEADS


def _reduce_inner(section: Fields, most: int) -> None:
    """Limit the widths of the MLP to ``most``, and reduce the experts and the embeddings of each layer."""
    for inner in INNER_WIDTHS:
        value = section.get(inner)
        if isinstance(value, list):
            section[inner] = [min(one, most) for one in value]
        elif isinstance(value, int):
            section[inner] = min(value, most)
    if section.get("hidden_size_per_layer_input"):
        section["hidden_size_per_layer_input"] = min(section["hidden_size_per_layer_input"], PER_LAYER_INPUT)
    chosen = max([section[one] for one in CHOSEN_EXPERTS if isinstance(section.get(one), int)], default=0)
    for experts in EXPERT_COUNTS:
        if isinstance(section.get(experts), int):
            section[experts] = min(section[experts], max(EXPERTS, chosen))


def _replace_text_width(section: Fields, before: int | None, now: int | None) -> None:
    for name in TEXT_WIDTHS:
        is_own = name == "hidden_size" and "embed_dim" not in section and _layers(section) is not None
        if section.get(name) == before and before is not None and not is_own:
            section[name] = now


def _config(fields: Fields) -> Any:
    return CONFIG_MAPPING[fields["model_type"]].from_dict(json.loads(json.dumps(fields)))


def _count(fields: Fields) -> int:
    """Return the number of parameters. Nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(_config(fields))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _random_model(fields: Fields) -> Any:
    """Return the model in 32 bits. No parameter is entirely zero, so that each has an effect."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(_config(fields), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=STD)
    return model.eval()


def _forward(model: Any, processor: Any) -> None:
    """Make a forward pass on a question about an image, with transformers alone."""
    image = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    text = render_prompt(processor, conversation(QUESTION, 1))
    inputs = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        model(**inputs)


def _copy_files(source: Path, target: Path) -> None:
    """Copy the small files of the model: processor, tokenizer, generation settings."""
    for file in source.iterdir():
        if file.name != "config.json" and file.suffix in SMALL_FILES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _save(model: Any, fields: Fields, target: Path) -> None:
    # Without this table, transformers 5 saves a new model under its internal names.
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    model.to(torch.bfloat16).save_pretrained(target)
    described = {**fields, "dtype": "bfloat16"}
    described.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def _too_large(source: Path, parameters: int) -> ModelError:
    return ModelError(
        "model.reduced_too_large",
        f"a reduced model of the architecture must need at most {MAX_BYTES / 1e9:g} GB of memory",
        place=f"[model] name = {source.name!r}",
        value=f"{FLOAT * parameters / 1e9:.1f} GB",
        remedy="Train a few steps on the GPU instead.",
    )


def _unusable(source: Path, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        "model.forward_fails",
        "transformers must make a forward pass of the architecture with the model's processor",
        place=f"[model] name = {source.name!r}",
        value=f"{type(error).__name__}: {reason[:200]}",
        remedy="Compare config.json and the processor's files with those of the model's authors, or use another model.",
    )
