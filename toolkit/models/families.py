"""Model families by ``model_type`` in config.json: what the code must know and cannot find in a model's own files.

This is the only table of this kind. A ``model_type`` without an entry has the defaults of ``Family``. Everything else
is read from the model: linear layers from its modules, the end of turn and the thinking switch from
its chat template, and image tokens from its processor. Conventions that differ between releases with the same
``model_type``, such as MedGemma 1 and 1.5, are in ``toolkit.scoring.regions.coordinates``.

Sources: the modelling files of transformers 5.15, Unsloth 2026.10 (``VLLM_SUPPORTED_VLM``, ``FORCE_FLOAT32`` and its
guide to Qwen3.5), and exports of models with random weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Last parts of the names of a decoder's linear layers in most families."""

SWITCH = "enable_thinking"
"""Argument of chat templates that switches reasoning on or off: Qwen3.5, Qwen3.6, Gemma 4, GLM."""


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. The defaults are those of a decoder like Llama's with a frozen mask and two norms a layer.

    Attributes:
        image_tokens: image tokens that no attribute of the processor names.
        image_blocks: tokens of an image attend to each other in both directions, which flash_attention_2 ignores.
        own_mask: the model passes its own attention mask, so transformers repeats keys and values for every head.
        norms: norms of the hidden state in a layer of the language model.
        head_norms: queries and keys are normalized too.
        least_pixels: the processor enlarges images with fewer pixels (its default).
        overflows: activations exceed float16, so Unsloth computes in float32 on a GPU without bfloat16.
        vllm: Unsloth generates its completions with vLLM.
        not_4bit: why 4-bit base weights are discouraged. Empty: they are not.
        untrainable: why training stops, with the installed versions. Empty: it does not, or was not tried.
        gguf: whether llama.cpp's converter has the family, for text model and projector. None: unknown. The table in
            docs/reference/model_families.md has the measured conversions.
    """

    image_tokens: tuple[str, ...] = ()
    image_blocks: bool = False
    own_mask: bool = False
    norms: int = 2
    head_norms: bool = False
    least_pixels: int = 0
    overflows: bool = False
    vllm: bool = False
    not_4bit: str = ""
    untrainable: str = ""
    gguf: bool | None = None


_QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
_GEMMA_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")

FAMILIES: Mapping[str, Family] = {
    "gemma3": Family(
        _GEMMA_TOKENS,
        image_blocks=True,
        own_mask=True,
        norms=4,
        head_norms=True,
        overflows=True,
        vllm=True,
        gguf=True,
    ),
    "gemma3n": Family(_GEMMA_TOKENS, image_blocks=True, own_mask=True, norms=4, head_norms=True, overflows=True),
    "gemma4": Family(own_mask=True, norms=4, head_norms=True, overflows=True, vllm=True, gguf=True),
    "idefics3": Family(("<image>", "<fake_token_around_image>"), vllm=True, gguf=True),
    "internvl": Family(gguf=False),
    "llama4": Family(("<|image|>",), untrainable="its layers get activations of another dtype than their weights"),
    "llava": Family(("<image>",)),
    "llava_next": Family(("<image>",), gguf=False),
    "llava_onevision": Family(("<image>",), gguf=False),
    "mistral3": Family(vllm=True),
    "mllama": Family(("<|image|>",), untrainable="its cross-attention mask ends before the answer"),
    "ovis2": Family(gguf=False),
    "paligemma": Family(("<image>",), image_blocks=True, own_mask=True, gguf=False),
    "qwen2_vl": Family(_QWEN_TOKENS, least_pixels=56 * 56, gguf=True),
    "qwen2_5_vl": Family(_QWEN_TOKENS, least_pixels=56 * 56, vllm=True, gguf=True),
    "qwen3_vl": Family(_QWEN_TOKENS, head_norms=True, least_pixels=256 * 256, vllm=True, gguf=True),
    "smolvlm": Family(gguf=True),
    "qwen3_5": Family(
        _QWEN_TOKENS,
        head_norms=True,
        overflows=True,
        vllm=True,
        not_4bit="Unsloth's guide advises against 4-bit training of Qwen3.5, whose quantization error is high",
        gguf=True,
    ),
}
"""``model_type`` -> family. A type such as qwen3_vl_moe without an entry of its own is of the family qwen3_vl."""

IMAGE_TOKENS = frozenset(token for family in FAMILIES.values() for token in family.image_tokens)
"""Image tokens of all families that no attribute of a processor names."""

VLLM = frozenset(name for name, family in FAMILIES.items() if family.vllm)
"""Model types that Unsloth runs with vLLM, without mixtures of experts."""

IMAGE_BLOCKS = frozenset(name for name, family in FAMILIES.items() if family.image_blocks)
"""Model types with bidirectional attention between the tokens of an image."""

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder|image_encoder)\.")
"""Matches modules of vision towers in transformers."""
PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|mm_projector|connector|aligner|embed_vision|merger|deepstack_merger_list)\."
)
"""Matches modules between vision tower and language model. Those of Qwen (``merger``) are inside the tower."""
TOWERS = re.compile(rf"{VISION.pattern}|(^|\.)(audio_tower|audio_encoder|audio_model)\.")
"""Matches modules of vision and audio towers in transformers."""


def family_of(model_type: str) -> Family:
    """Return the family of a ``model_type``. An unknown one has the defaults.

    >>> family_of("qwen3_vl_moe") is FAMILIES["qwen3_vl"], family_of("llava_next_video") is FAMILIES["llava_next"]
    (True, True)
    """
    parts = model_type.split("_")
    names = ("_".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((FAMILIES[name] for name in names if name in FAMILIES), Family())


def decoder_layers(model: Any) -> list[str]:
    """Return the full names of the language model's linear layers: ``lora.targets = "all-linear"``.

    These are all linear layers between the embeddings and the output head, such as those of attention, MLP, gated-delta
    layers (Qwen3.5) and per-layer embeddings (Gemma 4). The output head, towers and the projector are left out, and so
    are routers, whose class is not a plain linear layer. Quantized layers of bitsandbytes are plain linear layers.

    Args:
        model: A model of transformers, which may be on the meta device and may have an adapter inside.
    """
    import torch

    decoder, head = model.get_decoder(), model.get_output_embeddings()
    start = next(name for name, module in model.named_modules() if module is decoder)
    return [
        name.removesuffix(".base_layer")
        for name, module in decoder.named_modules(prefix=start)
        if isinstance(module, torch.nn.Linear)
        and (type(module) is torch.nn.Linear or type(module).__module__.startswith("bitsandbytes"))
        and module is not head
        and ".lora_" not in name
        and not TOWERS.search(name)
    ]
