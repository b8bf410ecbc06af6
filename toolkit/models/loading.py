"""A base model from a folder or the Hub, in the recipe's precision."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from toolkit.errors import ModelError, warn
from toolkit.models.module_names import IMAGE_BLOCKS
from toolkit.recipe import Model, Recipe

QUANTISED = ("4bit", "8bit")
REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of ``bitsandbytes.nn.Linear4bit``."""
ROOM = 1.25
"""A model is put on the GPU when this many times its size is free there: the rest is for eval_mode it."""


def load_model(source: str, model: Model, *, mergeable: bool = False) -> Any:
    """The weights in ``source`` as ``precision_of`` says, on the GPU where there is one.

    Raises:
        ModelError: they cannot be had, or not in this precision on this machine, or they do not fit the GPU.
    """
    show_downloads_only()
    check_attention(source, model)
    precision = precision_of(model, mergeable=mergeable)
    options: dict[str, Any] = {"dtype": _dtype(precision), "attn_implementation": _attention(model)}
    if precision in QUANTISED:
        options["quantization_config"] = _quantisation(precision)
        if not torch.cuda.is_available():
            warn(
                "model.quantised_on_cpu",
                "bitsandbytes is slow on a CPU and suits tests only",
                place="[model] precision",
                value=precision,
            )
            options["device_map"] = {"": "cpu"}
    if torch.cuda.is_available() and not mergeable:
        options["device_map"] = {"": torch.cuda.current_device()}
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code, **options
        )
    except ImportError as error:
        raise ModelError(
            "model.library_missing",
            "the library that this model or precision needs must be installed",
            place=f"[model] name = {source!r}, precision = {precision!r}",
            value=str(error).strip().splitlines()[0][:200],
            remedy="Install it, or choose another precision or attention.",
        ) from error
    except torch.OutOfMemoryError as error:
        raise model_too_large(source) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise model_not_found(source, error) from error
    _keep_trainable(loaded)
    if precision == "16bit" and loaded.dtype == torch.float32:
        warn(
            "model.16bit_loaded_as_float32",
            "this GPU lacks bfloat16, so the weights are float32 and take twice the memory",
            place="[model] precision",
            value=precision,
        )
    return _to_gpu_if_it_fits(loaded) if mergeable else loaded


def dequantise(model: Any, source: str) -> Any:
    """The model with weights of 16 bits in place of its quantised ones, which keep what quantising rounded off."""
    warn(
        "export.merged_into_dequantised",
        "the base is stored quantised, so the adapter is merged into dequantised weights",
        place="export.allow_dequantised",
        value=source,
    )
    whole = model.dequantize().to(torch.bfloat16)
    whole.is_loaded_in_4bit = whole.is_loaded_in_8bit = False  # transformers leaves the marks, and bits_of reads them
    # Saving goes back over what loading did to the stored names and values: unpacking four bits has no way back.
    whole._weight_conversions = [step for step in getattr(whole, "_weight_conversions", []) if _has_way_back(step)]
    return whole


def _has_way_back(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def check_mergeable(source: str, recipe: Recipe) -> None:
    """Before anything is trained: merged weights need a base that is not stored quantised, or the wish to dequantise.

    Raises:
        ModelError: the recipe exports merged weights, or a GGUF that is made of them, and the base is quantised, or
            cannot be had.
    """
    section = recipe.export
    if section is None or section.allow_dequantised or not {"merged", "gguf"} & set(section.to):
        return  # an optional GGUF is left out by the export where it cannot be made
    if method := stored_quantised(source, recipe.model):
        raise ModelError(
            "model.base_stored_quantised",
            "merged weights need a base that is stored in 16 bits or more",
            place=f"[model] name = {source!r}",
            value=method,
            remedy='Name the base that is not quantised (precision = "4bit" quantises it while loading), set '
            'export.to = ["adapter"], or set export.allow_dequantised = true.',
        )


def stored_quantised(source: str, model: Model) -> str | None:
    """How the weights in ``source`` are quantised where they are stored, such as bitsandbytes; None: they are not.

    Raises:
        ModelError: its configuration cannot be had.
    """
    try:
        settings, _ = PretrainedConfig.get_config_dict(source, revision=model.revision)
    except (OSError, ValueError) as error:
        raise model_not_found(source, error) from error
    found = settings.get("quantization_config")
    return str(found.get("quant_method", "quantised")) if found else None


def restore_weights(model: Any, checkpoint: Path) -> None:
    """Put the weights in ``checkpoint`` into the model, every one of them.

    Raises:
        ModelError: one is missing, too many, or of another shape.
    """
    show_downloads_only()
    stored = type(model).from_pretrained(str(checkpoint), dtype=model.dtype)
    try:
        model.load_state_dict(stored.state_dict())
    except RuntimeError as error:
        raise ModelError(
            "model.checkpoint_weights_differ",
            "a checkpoint must have the weights of the model in training",
            place=checkpoint,
            value=str(error).splitlines()[0][:200],
            remedy="Start again with --fresh.",
        ) from error


def precision_of(model: Model, *, mergeable: bool = False) -> str:
    """4bit, 8bit, 16bit, 32bit, or ``own``: as the weights are stored.

    ``auto`` is 4bit for LoRA on CUDA, else 32bit: an optimiser's small steps vanish in weights of 16 bits. What is to
    be merged is not quantised, since merging would round it once more.
    """
    precision: str = model.precision
    if precision == "auto":
        precision = "4bit" if torch.cuda.is_available() and model.tuning == "lora" else "32bit"
    return "own" if mergeable and precision in QUANTISED else precision


def bits_of(model: Any) -> int:
    """4 or 8 for quantised weights, else the bits of the weights' dtype."""
    for bits in (4, 8):
        if getattr(model, f"is_loaded_in_{bits}bit", False):
            return bits
    return int(torch.finfo(model.dtype).bits)


def model_not_found(source: str, error: Exception) -> ModelError:
    """The error that tells how a model can be had."""
    return ModelError(
        "model.not_found",
        "the model must be a folder or an available model on the Hub",
        place=f"[model] name = {source!r}",
        value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
        remedy="Check the name. A gated model needs `hf auth login`. Offline, give the folder of a downloaded copy.",
    )


def model_too_large(source: str) -> ModelError:
    """Return the error for a model that does not fit the GPU."""
    return ModelError(
        "model.too_large_for_gpu",
        "the model must fit into GPU memory",
        place=f"[model] name = {source!r}",
        value="out of memory while loading",
        remedy='End other programs on the GPU, set model.precision = "4bit", or use a smaller model.',
    )


def check_attention(source: str, model: Model) -> None:
    """Raises ModelError where flash_attention_2 would leave out what the model's pictures need."""
    if model.attention != "flash_attention_2":
        return
    if architecture_of(source, model) in IMAGE_BLOCKS:
        raise ModelError(
            "model.attention_ignores_image_blocks",
            "attention must be bidirectional between image tokens, which flash_attention_2 silently skips",
            place="[model] attention",
            value=model.attention,
            remedy='Set attention = "sdpa" or "eager".',
        )


def architecture_of(source: str, model: Model) -> str:
    """The ``model_type`` of the model in ``source``, such as gemma3.

    Raises:
        ModelError: its configuration cannot be had.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise model_not_found(source, error) from error
    return str(config.model_type)


def show_downloads_only() -> None:
    """No bars for reading and writing weights; those of downloads stay, since a download takes minutes."""
    downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()


def _dtype(precision: str) -> torch.dtype | str:
    """bfloat16 where the device computes in it. Gemma 3 overflows in float16, so that is never chosen.

    Quantised weights are multiplied in float32 on a CPU: bfloat16 is many times slower there without AVX512-BF16.
    """
    if precision == "own":
        return "auto"
    if precision == "32bit" or (precision in QUANTISED and not torch.cuda.is_available()):
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16


def _quantisation(precision: str) -> BitsAndBytesConfig:
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(precision),
    )


def _keep_trainable(model: Any) -> None:
    """Have bitsandbytes keep its layout of 4-bit weights, from which gradients can be computed.

    On CPUs with AVX512-BF16, bitsandbytes (0.50) packs the weights of a layer anew in its first evaluation, for a
    faster kernel that has no backward pass and whose scales are rounded to bfloat16. Each layer has an attribute for
    whether the CPU can do so.
    """
    for module in model.modules():
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)


def _attention(model: Model) -> str | None:
    return None if model.attention == "auto" else model.attention


def _to_gpu_if_it_fits(model: Any) -> Any:
    if not torch.cuda.is_available():
        return model
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return model.to(torch.cuda.current_device()) if ROOM * model.get_memory_footprint() < free else model
