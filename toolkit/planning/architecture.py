"""What the memory of a model follows from: its layers, its vision tower, and how many weights stand where."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ModelError
from toolkit.models.module_names import VISION


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of equal transformer layers. Widths are in numbers a token."""

    layers: int
    width: int
    """Of the hidden state."""
    inner: int
    """Of the MLP between its two sides."""
    heads: int
    kv_heads: int
    """Heads of keys and values: fewer than ``heads`` with grouped-query attention (arXiv 2305.13245)."""
    head_width: int
    gated: bool
    """The MLP has a gate beside its first layer (arXiv 2002.05202): three inner tensors, not two."""
    norms: int = 2
    """Norms of the hidden state a layer: 4 in Gemma 3, else 2."""
    head_norms: bool = False
    """Queries and keys are normed too (Gemma 3, Qwen3)."""
    expanded: bool = False
    """Keys and values are repeated for every head before attention: where a mask of its own is needed."""

    @property
    def query(self) -> int:
        """Numbers of all queries of a token."""
        return self.heads * self.head_width

    @property
    def key(self) -> int:
        """Numbers of all keys of a token, and of its values."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: its layers, and how a picture becomes patches and then tokens of the language model."""

    stack: Stack
    patch: int
    """Side of a patch in pixels."""
    channels: int = 3
    frames: int = 1
    """Copies of the picture that a patch holds: 2 in Qwen's towers, which read films too."""
    merge: int = 1
    """``merge`` x ``merge`` patches become one token."""
    side: int | None = None
    """Every picture becomes a square of so many pixels; None: pictures keep their size."""
    tokens: int | None = None
    """Every picture becomes so many tokens; None: by its size."""
    rotary: bool = False
    """Positions turn queries and keys, in float32 (Qwen's towers)."""
    layer_norm: bool = False
    """Its norms are torch's LayerNorm, whose output autocast makes float32."""
    hooked: bool = False
    """transformers finds its embeddings, and has them require gradients (``enable_input_require_grads``)."""
    deep: int = 0
    """Layers whose features go to the language model beside the last one's (Qwen3-VL)."""
    inner_tensors: int = 2
    """Tensors of the MLP's inner width that are alive at once in a forward pass: 3 of a gated one, or of quick_gelu."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Equal linear layers: ``count`` matrices of ``outputs`` x ``inputs``."""

    name: str
    """The last part of their names, as in ``lora.targets``."""
    inputs: int
    outputs: int
    count: int
    vision: bool
    quantised: bool
    """bitsandbytes takes them in 4bit and 8bit; the output head, among others, it leaves."""
    biases: int = 0
    """Bias numbers of all of them together."""

    @property
    def weights(self) -> int:
        """Of all of them together, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as the memory formulas see it."""

    model_type: str
    parameters: int
    """Of the whole model; weights that two modules share count once."""
    vision_parameters: int
    """Of the vision tower alone."""
    linears: tuple[Linear, ...]
    language: Stack
    vocabulary: int
    sliding_window: int | None = None
    sliding_layers: int = 0
    """Layers that see the last ``sliding_window`` tokens alone."""
    vision: Tower | None = None

    @property
    def quantised(self) -> int:
        """Weights that bitsandbytes quantises."""
        return sum(one.weights for one in self.linears if one.quantised)

    @property
    def quantised_vision(self) -> int:
        """Those of them that belong to the vision tower."""
        return sum(one.weights for one in self.linears if one.quantised and one.vision)

    @property
    def largest(self) -> int:
        """Weights of the largest matrix that bitsandbytes quantises."""
        return max((one.inputs * one.outputs for one in self.linears if one.quantised), default=0)

    @property
    def tower_linears(self) -> tuple[Linear, ...]:
        """Linear layers inside the vision tower's layers: shapes that occur at least once a layer. A shape may have two
        entries, if some of its matrices are quantised and others are not.
        """
        if self.vision is None:
            return ()
        shapes = [(one.name, one.inputs, one.outputs) for one in self.linears if one.vision for _ in range(one.count)]
        often = {shape for shape, count in Counter(shapes).items() if count >= self.vision.stack.layers}
        return tuple(one for one in self.linears if one.vision and (one.name, one.inputs, one.outputs) in often)

    @property
    def tower_quantised(self) -> bool:
        """Whether bitsandbytes quantises layers of the vision tower. Unsloth keeps them in 16 bits."""
        return any(one.quantised for one in self.tower_linears)

    def adapted(self, targets: Sequence[str], vision: bool) -> list[Linear]:
        """The linear layers that a LoRA adapter goes on, as the backend chooses them: by the last part of their name in
        the language model, and, if asked, all of the vision tower.
        """
        return [one for one in self.linears if (vision if one.vision else one.name in targets)]

    def adapter_parameters(self, r: int, targets: Sequence[str], vision: bool) -> int:
        """r x (inputs + outputs) for each adapted matrix (Hu et al. 2021, arXiv 2106.09685, 4.1)."""
        return sum(r * (one.inputs + one.outputs) * one.count for one in self.adapted(targets, vision))


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


def stays(name: str, kept: Iterable[str]) -> bool:
    """Return whether a module stays in 16 bits by a list of names, as Unsloth reads it.

    A listed name matches the module itself, all below it, and any path that contains it. Names of older model trees
    match those of the present one: ``language_model.model.`` for ``language_model.``, ``vision_model.`` for none.
    """
    path = f".{_present(name)}."
    return any(f".{_present(one)}." in path for one in kept)


def _present(name: str) -> str:
    return (
        re.sub(r"^model\.", "", name).replace("language_model.model.", "language_model.").replace("vision_model.", "")
    )
