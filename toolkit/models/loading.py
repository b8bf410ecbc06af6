"""A base model from a folder or the Hub, in the recipe's precision."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from toolkit.errors import ModelError, warn
from toolkit.models.families import IMAGE_BLOCKS
from toolkit.models.model_config import read_configuration
from toolkit.models.processor import model_not_found
from toolkit.models.weight_files import check_model_folder, model_weights, tensor_shapes
from toolkit.recipe import Model, Recipe

QUANTIZED = ("4bit", "8bit")
UNUSABLE = (
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    StrictDataclassError,
)
"""Errors of transformers for files that are readable and do not describe a model."""
REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of ``bitsandbytes.nn.Linear4bit``."""
MAX_OF_STORED = 2
"""Largest multiple of the stored numbers that a model may have as parameters. Fewer missing ones are found later."""
HEADROOM = 1.25
"""A model for merging moves to the GPU if this multiple of its size is free. The excess is for inference."""


def load_model(source: str, model: Model, *, mergeable: bool = False) -> Any:
    """Load the weights in ``source`` with the precision of ``precision_of``, on the GPU if there is one.

    Raises:
        ModelError: The weights are not available, do not fit the GPU, or the machine does not support the precision.
    """
    show_downloads_only()
    if Path(source).is_dir():  # files on the Hub are checked by transformers
        check_model_folder(Path(source))
        _check_size(source, model)
    check_attention(source, model)
    loaded = _load(source, model, _options(model, precision_of(model, mergeable=mergeable), mergeable=mergeable))
    _keep_trainable(loaded)
    if precision_of(model, mergeable=mergeable) == "16bit" and loaded.dtype == torch.float32:
        warn(
            "model.16bit_loaded_as_float32",
            "this GPU lacks bfloat16, so the weights are float32 and take twice the memory",
            place="[model] precision",
            value=model.precision,
        )
    return _to_gpu_if_it_fits(loaded) if mergeable else loaded


def _check_size(source: str, model: Model) -> None:
    """Compare the number of parameters with that of the files. transformers would allocate and initialise the others.

    The model is built on the meta device, without memory for its parameters.

    Raises:
        ModelError: The configuration does not describe a model, or a model that is much larger than the files.
    """
    config = _configuration(source, model)
    if model.trust_remote_code or getattr(config, "quantization_config", None):  # packed weights have other shapes
        return
    try:
        with torch.device("meta"):
            empty = AutoModelForImageTextToText.from_config(config)
        empty.tie_weights()
    except UNUSABLE as error:
        raise model_unusable(source, error) from error
    parameters = sum(one.numel() for one in empty.parameters())
    stored = sum(math.prod(shape) for file in model_weights(Path(source)) for shape in tensor_shapes(file).values())
    if parameters > MAX_OF_STORED * stored:
        raise ModelError(
            "model.larger_than_its_files",
            "the model of the configuration must be the model of the files",
            place=f"[model] name = {source!r}",
            value=f"{parameters:,} parameters, and {stored:,} in the files",
            remedy="Compare config.json with that of the model's authors, or copy or download the model again.",
        )


def _options(model: Model, precision: str, *, mergeable: bool) -> dict[str, Any]:
    """Return the keyword arguments of ``from_pretrained`` for a precision."""
    options: dict[str, Any] = {"dtype": _dtype(precision), "attn_implementation": _attention(model)}
    if precision in QUANTIZED:
        options["quantization_config"] = _quantization(precision)
        if not torch.cuda.is_available():
            warn(
                "model.quantized_on_cpu",
                "bitsandbytes is slow on a CPU and suits tests only",
                place="[model] precision",
                value=precision,
            )
            options["device_map"] = {"": "cpu"}
    if torch.cuda.is_available() and not mergeable:
        options["device_map"] = {"": torch.cuda.current_device()}
    return options


def _load(source: str, model: Model, options: dict[str, Any]) -> Any:
    loaded: Any
    found: dict[str, Any]
    try:
        loaded, found = AutoModelForImageTextToText.from_pretrained(  # type: ignore[misc]
            source,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        raise ModelError(
            "model.library_missing",
            "the library that this model or precision needs must be installed",
            place=f"[model] name = {source!r}, precision = {model.precision!r}",
            value=str(error).strip().splitlines()[0][:200],
            remedy="Install it, or choose another precision or attention.",
        ) from error
    except torch.OutOfMemoryError as error:
        raise model_too_large(source) from error
    except OSError as error:
        raise model_not_found(source, error) from error
    except (*UNUSABLE, SafetensorError) as error:
        raise model_unusable(source, error) from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            "model.weights_incomplete",
            "the files must contain all weights of the model, which would otherwise be random",
            place=f"[model] name = {source!r}",
            value=f"{len(missing)} missing: {', '.join(missing[:3])}",
            remedy="Copy or download the model again.",
        )
    if unused := sorted(found["unexpected_keys"]):
        warn(
            "model.weights_unused",
            "the model of the configuration does not use these weights, so it may not be the model of the files",
            place=f"[model] name = {source!r}",
            value=f"{len(unused)} unused: {', '.join(unused[:3])}",
            remedy="Compare config.json with that of the model's authors.",
        )
    return loaded


def dequantize(model: Any, source: str) -> Any:
    """Return the model with dequantized 16-bit weights, which keep the quantization error."""
    warn(
        "export.merged_into_dequantized",
        "the base is stored quantized, so the adapter is merged into dequantized weights",
        place="export.allow_dequantized",
        value=source,
    )
    whole = model.dequantize().to(torch.bfloat16)
    whole.is_loaded_in_4bit = whole.is_loaded_in_8bit = False  # transformers keeps these flags, which bits_of reads
    # Saving reverses the conversions that loading applied to stored names and values. Unpacking 4 bits has no reverse.
    whole._weight_conversions = [one for one in getattr(whole, "_weight_conversions", []) if _is_reversible(one)]
    return whole


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def check_mergeable(source: str, recipe: Recipe) -> None:
    """Check before training that merged weights can be exported: the base must not be stored quantized.

    Raises:
        ModelError: The recipe exports merged weights or a GGUF without ``allow_dequantized``, and the base is stored
            quantized or is not available.
    """
    section = recipe.export
    if section is None or section.allow_dequantized or not {"merged", "gguf"} & set(section.to):
        return  # the export skips an optional GGUF that it cannot create
    if method := stored_quantized(source, recipe.model):
        raise ModelError(
            "model.base_stored_quantized",
            "merged weights need a base that is stored in 16 bits or more",
            place=f"[model] name = {source!r}",
            value=method,
            remedy='Name the base that is not quantized (precision = "4bit" quantizes it while loading), set '
            'export.to = ["adapter"], or set export.allow_dequantized = true.',
        )


def stored_quantized(source: str, model: Model) -> str | None:
    """Return the method with which the stored weights are quantized, such as bitsandbytes, or None.

    Raises:
        ModelError: The configuration is not available.
    """
    if (file := Path(source) / "config.json").exists():
        settings: Mapping[str, Any] = read_configuration(file)
    else:
        try:
            settings, _ = PretrainedConfig.get_config_dict(source, revision=model.revision)
        except (OSError, ValueError) as error:
            raise model_not_found(source, error) from error
    found = settings.get("quantization_config")
    return str(found.get("quant_method", "quantized")) if isinstance(found, Mapping) and found else None


def restore_weights(model: Any, checkpoint: Path) -> None:
    """Load all weights of ``checkpoint`` into the model.

    Raises:
        ModelError: A weight is missing, unexpected, or has another shape.
    """
    show_downloads_only()
    model_weights(checkpoint)
    stored = type(model).from_pretrained(str(checkpoint), dtype=model.dtype, use_safetensors=True)
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
    """Return 4bit, 8bit, 16bit, 32bit, or ``own`` (the stored dtype).

    ``auto`` is 4bit for LoRA on CUDA, otherwise 32bit, because small optimizer updates vanish in 16-bit weights. A
    model for merging is not quantized, because merging would add the quantization error.
    """
    precision: str = model.precision
    if precision == "auto":
        precision = "4bit" if torch.cuda.is_available() and model.tuning == "lora" else "32bit"
    return "own" if mergeable and precision in QUANTIZED else precision


def bits_of(model: Any) -> int:
    """Return 4 or 8 for quantized weights, otherwise the bits of the dtype."""
    for bits in (4, 8):
        if getattr(model, f"is_loaded_in_{bits}bit", False):
            return bits
    return int(torch.finfo(model.dtype).bits)


def model_unusable(source: str, error: Exception) -> ModelError:
    """Return the error for files that the installed transformers cannot load as a model.

    Raises:
        Exception: ``error``, if it comes from the GPU.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()
    if "CUDA" in reason[0]:
        raise error
    if isinstance(error, ValueError) and not Path(source).is_dir():
        return model_not_found(source, error)
    return ModelError(
        "model.config_unsupported",
        "the model must be one that the installed transformers loads for images and text",
        place=f"[model] name = {source!r}",
        value=" ".join(reason)[:300],
        remedy="Use another model, or a version of transformers that supports it. Code of the model's authors runs "
        "only with model.trust_remote_code = true.",
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
    """Raise ModelError if flash_attention_2 would drop the bidirectional attention between image tokens."""
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
    """Return the ``model_type`` of the model in ``source``, such as gemma3.

    Raises:
        ModelError: The configuration is not available.
    """
    return str(_configuration(source, model).model_type)


def _configuration(source: str, model: Model) -> Any:
    try:
        return AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except OSError as error:
        raise model_not_found(source, error) from error
    except UNUSABLE as error:
        raise model_unusable(source, error) from error


def show_downloads_only() -> None:
    """Show progress bars for downloads, which take minutes, but not for reading and writing weights."""
    downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()


def _dtype(precision: str) -> torch.dtype | str:
    """Return bfloat16 if the device supports it, otherwise float32. Gemma 3 overflows in float16.

    On a CPU, quantized weights are multiplied in float32, because bfloat16 is much slower without AVX512-BF16.
    """
    if precision == "own":
        return "auto"
    if precision == "32bit" or (precision in QUANTIZED and not torch.cuda.is_available()):
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16


def _quantization(precision: str) -> BitsAndBytesConfig:
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(precision),
    )


def _keep_trainable(model: Any) -> None:
    """Keep the 4-bit weight layout of bitsandbytes that supports gradients.

    On CPUs with AVX512-BF16, bitsandbytes (0.50) repacks the weights of a layer in its first inference pass. The faster
    kernel has no backward pass, and its scales are rounded to bfloat16. An attribute of each layer enables it.
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
    return model.to(torch.cuda.current_device()) if HEADROOM * model.get_memory_footprint() < free else model
