"""A model's configuration as an Architecture: its parameters are counted on torch's meta device, where they take no
memory, so that the counts are those of the real model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import ModelError
from toolkit.models.module_names import VISION
from toolkit.planning.architecture import Architecture, Linear, Stack, Tower
from toolkit.planning.prequantised import stays

FOUR_NORMS = ("gemma2", "gemma3", "gemma3n", "gemma4")
HEAD_NORMS = ("gemma3", "gemma3n", "gemma4", "qwen3")
OWN_MASKS = ("gemma3", "gemma3n", "gemma4", "paligemma")
"""Model types that begin so: with four norms a layer, with norms of queries and keys, and with a mask of their own
(picture tokens see each other both ways), for which transformers repeats keys and values."""

Shape = tuple[str, int, int, bool, bool]


def build_architecture(fields: Mapping[str, Any], kept: Sequence[str] = ()) -> Architecture:
    """The architecture that a configuration (the fields of config.json) describes.

    Args:
        fields: of config.json.
        kept: modules that are not quantised besides those that transformers leaves out; see ``prequantised.stays``.

    Raises:
        ModelError: transformers knows no such model, or the configuration lacks what the formulas need.
    """
    try:
        config, model = _meta_model(fields)
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
        linears = _linears(model, kept)
        return Architecture(
            model_type=str(config.model_type),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            vision_parameters=sum(p.numel() for name, p in model.named_parameters() if VISION.search(name)),
            linears=linears,
            language=_language(str(config.model_type), text),
            vocabulary=int(text.vocab_size),
            sliding_window=getattr(text, "sliding_window", None),
            sliding_layers=sum(kind == "sliding_attention" for kind in getattr(text, "layer_types", None) or ()),
            vision=None if vision is None else _tower(config, vision, model),
        )
    except (LookupError, AttributeError, ValueError, TypeError, ImportError, ArithmeticError, _invalid()) as error:
        raise ModelError(
            "model.config_unsupported",
            "the configuration must be one that the installed transformers knows",
            place=f"config.json, model_type = {fields.get('model_type')!r}",
            value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
        ) from error


def _invalid() -> type[Exception]:
    """What a configuration class raises of a field that cannot be."""
    from huggingface_hub.errors import StrictDataclassError

    return StrictDataclassError


def _meta_model(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    return config, model


def _linears(model: Any, skipped: Sequence[str]) -> tuple[Linear, ...]:
    """All linear layers, equal ones together; which of them bitsandbytes takes is transformers' own rule, and after it
    the list of what is ``skipped``."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    found: Counter[Shape] = Counter()
    biases: Counter[Shape] = Counter()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        taken = type(module) is torch.nn.Linear and should_convert_module(name, kept) and not stays(name, skipped)
        vision = VISION.search(name) is not None
        shape = (name.rpartition(".")[2], module.in_features, module.out_features, vision, taken)
        found[shape] += 1
        biases[shape] += 0 if module.bias is None else module.bias.numel()
    return tuple(
        Linear(shape[0], shape[1], shape[2], count, shape[3], shape[4], biases[shape]) for shape, count in found.items()
    )


def _language(model_type: str, text: Any) -> Stack:
    heads = int(text.num_attention_heads)
    return Stack(
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        inner=int(text.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_width=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        gated=True,
        norms=4 if model_type.startswith(FOUR_NORMS) else 2,
        head_norms=model_type.startswith(HEAD_NORMS),
        expanded=model_type.startswith(OWN_MASKS),
    )


def _vision_parts(model: Any) -> list[Any]:
    return [part for name, part in model.named_modules() if VISION.search(f"{name}.")]


def _has_layer_norm(model: Any) -> bool:
    import torch

    return any(isinstance(part, torch.nn.LayerNorm) for part in _vision_parts(model))


def _is_hooked(model: Any) -> bool:
    for part in _vision_parts(model):
        try:
            if hasattr(part, "get_input_embeddings") and part.get_input_embeddings() is not None:
                return True
        except NotImplementedError:
            continue
    return False


def _tower(config: Any, vision: Any, model: Any) -> Tower:
    width = int(getattr(vision, "embed_dim", None) or vision.hidden_size)
    heads = int(getattr(vision, "num_attention_heads", None) or vision.num_heads)
    inner = int(getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio)
    by_size = getattr(vision, "spatial_merge_size", None) is not None
    stack = Stack(
        layers=int(getattr(vision, "num_hidden_layers", None) or vision.depth),
        width=width,
        inner=inner,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        gated=str(config.model_type).startswith("qwen2_5"),
    )
    return Tower(
        stack=stack,
        patch=int(vision.patch_size),
        channels=int(getattr(vision, "in_channels", 0) or getattr(vision, "num_channels", 3)),
        frames=int(getattr(vision, "temporal_patch_size", 1)),
        merge=int(vision.spatial_merge_size) if by_size else 1,
        side=None if by_size else int(vision.image_size),
        tokens=getattr(config, "mm_tokens_per_image", None),
        rotary=by_size,
        layer_norm=_has_layer_norm(model),
        hooked=_is_hooked(model),
        deep=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        inner_tensors=3 if stack.gated or getattr(vision, "hidden_act", None) == "quick_gelu" else 2,
    )
