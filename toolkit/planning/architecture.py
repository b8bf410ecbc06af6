"""Architecture of a model: layers, vision tower and parameter counts, from its configuration.

Parameters are counted on torch's meta device, which allocates no memory, so the counts are those of the real model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ModelError
from toolkit.models.families import TOWERS, VISION, decoder_layers, family_of

FLOAT = 4
"""Bytes of a float32 number."""
BLOCK, OUTER_BLOCK = 64, 256
"""Block sizes of bitsandbytes: parameters with one scale, and scales with one second-level scale."""
TABLES = 16 * 4 + 256 * 4 + 4
"""Further bytes of a quantized matrix: both code tables in float32, and the mean of its scales."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of equal transformer layers. Widths are numbers per token."""

    layers: int
    width: int
    """Hidden size."""
    inner: int
    """Intermediate size of the MLP."""
    heads: int
    kv_heads: int
    """Heads of keys and values: fewer than ``heads`` in grouped-query attention (arXiv 2305.13245)."""
    head_width: int
    gated: bool
    """The MLP has a gate (arXiv 2002.05202): three inner tensors instead of two."""
    norms: int = 2
    """Norms of the hidden state in a layer: 4 in Gemma 3, otherwise 2."""
    head_norms: bool = False
    """Queries and keys are normalized too (Gemma 3, Qwen3)."""
    expanded: bool = False
    """Keys and values are repeated for every head before attention, because the model needs its own mask."""

    @property
    def query(self) -> int:
        """Return the width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def key(self) -> int:
        """Return the width of all keys of a token, which is also that of its values."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: its layers, and how an image becomes patches and then image tokens."""

    stack: Stack
    patch: int
    """Side of a patch in pixels."""
    channels: int = 3
    frames: int = 1
    """Copies of the image in a patch: 2 in the vision towers of Qwen, which also read videos."""
    merge: int = 1
    """``merge`` x ``merge`` patches become one token."""
    side: int | None = None
    """Side in pixels to which every image is resized. None: images keep their size."""
    tokens: int | None = None
    """Tokens of every image. None: the number depends on the image size."""
    rotary: bool = False
    """Rotary position embeddings of queries and keys in float32 (vision towers of Qwen)."""
    layer_norm: bool = False
    """The norms are torch's LayerNorm, whose output is float32 under autocast."""
    hooked: bool = False
    """transformers finds the embeddings and makes them require gradients (``enable_input_require_grads``)."""
    deep: int = 0
    """Layers whose features go to the language model in addition to those of the last layer (Qwen3-VL)."""
    inner_tensors: int = 2
    """Tensors of the MLP's intermediate size that are alive at once in a forward pass: 3 with a gate or quick_gelu."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Equal linear layers: ``count`` matrices of ``outputs`` x ``inputs``."""

    name: str
    """Last part of the module name, as in ``lora.targets``."""
    inputs: int
    outputs: int
    count: int
    vision: bool
    quantized: bool
    """bitsandbytes quantizes the layers in 4bit and 8bit. The output head, for example, is not quantized."""
    biases: int = 0
    """Bias parameters of all layers together."""
    decoder: bool = True
    """The layers are among those of ``lora.targets = "all-linear"``."""
    audio: bool = False
    """The layers belong to an audio tower, which has no adapter."""

    @property
    def weights(self) -> int:
        """Return the parameters of all layers, without biases."""
        return self.inputs * self.outputs * self.count

    @property
    def nf4_bytes(self) -> int:
        """Return the bytes of all matrices in nf4 with double quantization.

        There are 4 bits for each parameter, 8 bits for a block of 64 parameters, a float32 for 256 blocks, and the code
        tables (Dettmers et al. 2023, arXiv 2305.14314, 3, with the block sizes of bitsandbytes).
        """
        parameters = self.inputs * self.outputs
        blocks = -(-parameters // BLOCK)
        return self.count * (-(-parameters // 2) + blocks + FLOAT * -(-blocks // OUTER_BLOCK) + TABLES)

    @property
    def int8_bytes(self) -> int:
        """Return the bytes of all matrices in LLM.int8: one for each parameter and a float32 for each row.

        Source: Dettmers et al. 2022, arXiv 2208.07339.
        """
        return self.count * (self.inputs * self.outputs + FLOAT * self.outputs)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as the memory formulas need it."""

    model_type: str
    parameters: int
    """Parameters of the whole model. Shared parameters count once."""
    vision_parameters: int
    """Parameters of the vision tower."""
    linears: tuple[Linear, ...]
    language: Stack
    vocabulary: int
    sliding_window: int | None = None
    sliding_layers: int = 0
    """Layers with sliding-window attention over ``sliding_window`` tokens."""
    vision: Tower | None = None

    @property
    def quantized(self) -> int:
        """Return the number of parameters that bitsandbytes quantizes."""
        return sum(one.weights for one in self.linears if one.quantized)

    @property
    def largest(self) -> int:
        """Return the parameters of the largest quantized matrix."""
        return max((one.inputs * one.outputs for one in self.linears if one.quantized), default=0)

    @property
    def tower_linears(self) -> tuple[Linear, ...]:
        """Return the linear layers inside the layers of the vision tower.

        These are the shapes that occur at least once for each layer. A shape has two entries if only some of its
        matrices are quantized.
        """
        if self.vision is None:
            return ()
        shapes = [(one.name, one.inputs, one.outputs) for one in self.linears if one.vision for _ in range(one.count)]
        often = {shape for shape, count in Counter(shapes).items() if count >= self.vision.stack.layers}
        return tuple(one for one in self.linears if one.vision and (one.name, one.inputs, one.outputs) in often)

    @property
    def tower_quantized(self) -> bool:
        """Return whether bitsandbytes quantizes layers of the vision tower. Unsloth keeps them in 16 bits."""
        return any(one.quantized for one in self.tower_linears)

    def adapted(self, targets: Sequence[str], vision: bool) -> list[Linear]:
        """Return the linear layers that a LoRA adapter is attached to, as the backend chooses them.

        In the language model, layers are chosen by the last part of their name. In the vision tower, all or none are
        chosen.
        """
        chosen = [one for one in self.linears if not one.audio]
        return [one for one in chosen if (vision if one.vision else one.name in targets)]

    def target_names(self, targets: str | Sequence[str]) -> tuple[str, ...]:
        """Return the names of linear layers that ``lora.targets`` means."""
        if not isinstance(targets, str):
            return tuple(targets)
        return tuple(dict.fromkeys(one.name for one in self.linears if one.decoder))

    def adapter_parameters(self, r: int, targets: Sequence[str], vision: bool, *, dora: bool = False) -> int:
        """Return the parameters of a LoRA adapter: r x (inputs + outputs) for each adapted matrix.

        DoRA has one more for each output. Sources: Hu et al. 2021, arXiv 2106.09685, 4.1. Liu et al. 2024, arXiv
        2402.09353, 4.1.
        """
        adapted = self.adapted(targets, vision)
        lengths = sum(one.outputs * one.count for one in adapted) if dora else 0
        return lengths + sum(r * (one.inputs + one.outputs) * one.count for one in adapted)


Shape = tuple[str, int, int, bool, bool, bool, bool]


def build_architecture(fields: Mapping[str, Any], unquantized: Sequence[str] = ()) -> Architecture:
    """Return the architecture that a configuration describes.

    Args:
        fields: fields of config.json.
        unquantized: modules that are not quantized, in addition to those that transformers leaves out. See
            ``is_unquantized``.

    Raises:
        ModelError: transformers cannot build the model (see ``build_linears``), or the configuration lacks fields that
            the formulas need (``plan.shapes_unknown``).
    """
    config, model = _built_model(fields)
    try:
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
        linears = _linears(model, unquantized)
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
    except _UNKNOWN as error:
        rule = "GPU memory and time are estimated only for vision towers like those of Gemma 3 and Qwen"
        place, remedy = _place(fields), "Measure the GPU memory of the first steps."
        raise ModelError("plan.shapes_unknown", rule, place=place, value=_reason(error), remedy=remedy) from error


def build_linears(fields: Mapping[str, Any]) -> tuple[Linear, ...]:
    """Return the linear layers of the model that a configuration describes.

    Raises:
        ModelError: transformers does not know the model, or needs a library that is not installed.
    """
    return _linears(_built_model(fields)[1], ())


_UNKNOWN = (LookupError, AttributeError, ValueError, TypeError, ArithmeticError)
"""Exceptions for a configuration with fields that are missing, or unlike those of other models."""


def _built_model(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        return _meta_model(fields)
    except ImportError as error:
        rule, remedy = "the library that the model needs must be installed", "Install it."
        raise ModelError(
            "model.library_missing", rule, place=_place(fields), value=_reason(error), remedy=remedy
        ) from None
    except (*_UNKNOWN, _invalid()) as error:
        raise ModelError(
            "model.config_unsupported",
            "the configuration must be one that the installed transformers knows",
            place=_place(fields),
            value=_reason(error),
            remedy="Choose another model, or install a version of transformers that knows it.",
        ) from error


def _place(fields: Mapping[str, Any]) -> str:
    return f"config.json, model_type = {fields.get('model_type')!r}"


def _reason(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:200]


def _invalid() -> type[Exception]:
    """Return the exception that a configuration class raises for an invalid field."""
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


def _linears(model: Any, unquantized: Sequence[str]) -> tuple[Linear, ...]:
    """Return all linear layers, grouped by shape.

    transformers decides which layers bitsandbytes quantizes. The modules in ``unquantized`` are left out after that.
    """
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    decoder = frozenset(decoder_layers(model))
    found: Counter[Shape] = Counter()
    biases: Counter[Shape] = Counter()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        converted = (
            type(module) is torch.nn.Linear
            and should_convert_module(name, skipped)
            and not is_unquantized(name, unquantized)
        )
        vision = VISION.search(name) is not None
        audio = not vision and TOWERS.search(name) is not None
        last = name.rpartition(".")[2]
        shape = (last, module.in_features, module.out_features, vision, converted, name in decoder, audio)
        found[shape] += 1
        biases[shape] += 0 if module.bias is None else module.bias.numel()
    return tuple(Linear(*shape[:3], count, *shape[3:5], biases[shape], *shape[5:]) for shape, count in found.items())


def _language(model_type: str, text: Any) -> Stack:
    heads, family = int(text.num_attention_heads), family_of(model_type)
    return Stack(
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        inner=int(text.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_width=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        gated=True,
        norms=family.norms,
        head_norms=family.head_norms,
        expanded=family.own_mask,
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


def is_unquantized(name: str, listed: Iterable[str]) -> bool:
    """Return whether a module stays in 16 bits because a list names it, as Unsloth reads the list.

    A listed name matches the module itself, all modules below it, and any path that contains it. Names of older module
    trees match those of the present one: ``language_model.model.`` for ``language_model.``, and ``vision_model.`` for
    none.
    """
    path = f".{_present(name)}."
    return any(f".{_present(one)}." in path for one in listed)


def _present(name: str) -> str:
    return (
        re.sub(r"^model\.", "", name).replace("language_model.model.", "language_model.").replace("vision_model.", "")
    )
