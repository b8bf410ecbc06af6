"""Bytes of tensors that exist throughout a stage: parameters, adapter, gradients and optimizer state."""

from toolkit.planning.architecture import FLOAT, Architecture
from toolkit.planning.stages import QUANTIZED, Setting

STATE_BLOCK = 256
"""Values of an 8-bit optimizer state that have one scale."""


def weight_bytes(model: Architecture, setting: Setting) -> tuple[int, int]:
    """Return the bytes of the model without its vision tower, and of the vision tower.

    The linear layers that transformers passes to bitsandbytes are quantized, on the hf backend including those of the
    vision tower. Embeddings, output head, norms, biases and convolutions take ``Setting.parameter`` bytes for each
    parameter.
    """
    parts = []
    for vision, all_weights in ((False, model.parameters - model.vision_parameters), (True, model.vision_parameters)):
        unquantized, packed = all_weights, 0
        if setting.precision in QUANTIZED:
            for one in model.linears:
                if one.quantized and one.vision == vision:
                    unquantized -= one.weights
                    packed += one.nf4_bytes if setting.precision == "4bit" else one.int8_bytes
        parts.append(packed + unquantized * setting.parameter)
    return parts[0], parts[1]


def quantizes_tower(model: Architecture, setting: Setting) -> bool:
    """Return whether layers of the vision tower are quantized."""
    return setting.precision in QUANTIZED and model.tower_quantized


def norm_value(model: Architecture, setting: Setting, *, autocast: bool) -> int:
    """Return the bytes of a number that a norm of the vision tower returns.

    Under autocast, LayerNorm returns float32.
    """
    return FLOAT if autocast and model.vision is not None and model.vision.layer_norm else setting.stored


def tower_value(model: Architecture, setting: Setting, *, autocast: bool) -> int:
    """Return the bytes of other activations of the vision tower.

    A layer in 16 bits casts the output of the norm. A quantized layer computes in the type of its input (bitsandbytes'
    ``Linear4bit``), so the whole tower computes in float32.
    """
    return norm_value(model, setting, autocast=autocast) if quantizes_tower(model, setting) else setting.stored


def dequantized_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the largest quantized matrix in the type of its matrix product.

    bitsandbytes dequantizes the matrix for each product (``MatMul4Bit``).
    """
    return model.largest * setting.stored if setting.precision in QUANTIZED else 0


def trained_parameters(model: Architecture, setting: Setting) -> int:
    """Return the number of parameters that the optimizer updates."""
    if not setting.trains:
        return 0
    if setting.tuning == "full":
        return model.parameters
    return _adapter_parameters(model, setting)


def _adapter_parameters(model: Architecture, setting: Setting) -> int:
    return model.adapter_parameters(setting.r, setting.targets, setting.lora_vision, dora=setting.dora)


def adapter_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the adapter in float32 (peft's ``autocast_adapter_dtype``).

    Under autocast, a pass without gradient checkpointing keeps a bfloat16 copy.
    """
    if setting.tuning == "full":
        return 0
    copy = 2 if setting.trains and setting.mixed and not setting.checkpointing else 0
    return (FLOAT + copy) * _adapter_parameters(model, setting)


def autocast_copies(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the bfloat16 adapter that autocast keeps until its block ends (trace)."""
    if setting.tuning == "full" or not setting.mixed:
        return 0
    return 2 * _adapter_parameters(model, setting)


def gradient_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the gradients: one number for each trained parameter, in its type."""
    each = setting.stored if setting.tuning == "full" else FLOAT
    return each * trained_parameters(model, setting)


def optimizer_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of AdamW's two moments (Loshchilov & Hutter 2019, arXiv 1711.05101).

    They have the type of the parameter, or 8 bits with a float32 scale for a block of 256 (Dettmers et al. 2022, arXiv
    2110.02861). A paged state counts in full, because it leaves the GPU only when GPU memory is full.
    """
    weights = trained_parameters(model, setting)
    if "8bit" in setting.optimizer:
        return 2 * (weights + FLOAT * -(-weights // STATE_BLOCK))
    return 2 * (setting.stored if setting.tuning == "full" else FLOAT) * weights


def reference_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the reference of a KL term or of DPO.

    This is a copy of the adapter that the stage started from, or of the whole model in full fine-tuning. With a KL
    term, a new adapter is disabled instead and takes none (TRL's ``GRPOTrainer``).
    """
    if setting.reference == "adapter":
        return FLOAT * _adapter_parameters(model, setting)
    return setting.stored * model.parameters if setting.reference == "model" else 0
