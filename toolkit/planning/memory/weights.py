"""Bytes of what stays on the card throughout a stage: weights, adapter, gradients, optimiser state."""

from toolkit.planning.architecture import Architecture
from toolkit.planning.stages import QUANTISED, Setting

BLOCK, OUTER_BLOCK = 64, 256
"""bitsandbytes' blocks: so many weights share one scale, and so many scales share one scale of theirs."""
TABLES = 16 * 4 + 256 * 4 + 4
"""Bytes a quantised matrix holds besides: both code tables in float32, and the mean of its scales."""
FLOAT = 4


def nf4_bytes(weights: int) -> int:
    """Bytes of one matrix in nf4 with double quantisation: 4 bits a weight, 8 bits a block of 64 weights, a float32 for
    256 such blocks, and its tables (Dettmers et al. 2023, arXiv 2305.14314, 3; block sizes of bitsandbytes).
    """
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + blocks + FLOAT * -(-blocks // OUTER_BLOCK) + TABLES


def int8_bytes(inputs: int, outputs: int) -> int:
    """Bytes of one matrix in LLM.int8: a byte a weight and a float32 a row (Dettmers et al. 2022, arXiv 2208.07339)."""
    return inputs * outputs + FLOAT * outputs


def weight_bytes(model: Architecture, setting: Setting) -> tuple[int, int]:
    """Bytes of the language model with all that is not the vision tower, and of the vision tower.

    Quantised are the linear layers that transformers hands to bitsandbytes, on the hf backend those of the tower among
    them. Embeddings, the output head, norms, biases and convolutions take ``Setting.held`` bytes a weight.
    """
    parts = []
    for vision, all_weights in ((False, model.parameters - model.vision_parameters), (True, model.vision_parameters)):
        kept, packed = all_weights, 0
        if setting.precision in QUANTISED:
            for one in model.linears:
                if one.quantised and one.vision == vision:
                    kept -= one.weights
                    four = setting.precision == "4bit"
                    each = nf4_bytes(one.inputs * one.outputs) if four else int8_bytes(one.inputs, one.outputs)
                    packed += one.count * each
        parts.append(packed + kept * setting.held)
    return parts[0], parts[1]


def quantises_tower(model: Architecture, setting: Setting) -> bool:
    """Whether layers of the vision tower are quantised."""
    return setting.precision in QUANTISED and model.tower_quantised


def norm_value(model: Architecture, setting: Setting, *, autocast: bool) -> int:
    """Bytes of a number that a norm of the vision tower returns. Autocast makes the output of a LayerNorm float32."""
    return FLOAT if autocast and model.vision is not None and model.vision.layer_norm else setting.stored


def tower_value(model: Architecture, setting: Setting, *, autocast: bool) -> int:
    """Bytes of another activation of the vision tower. A layer in 16 bits casts what the norm returns; a quantised one
    computes in the type that it is given (bitsandbytes' ``Linear4bit``), so that all of the tower becomes float32.
    """
    return norm_value(model, setting, autocast=autocast) if quantises_tower(model, setting) else setting.stored


def dequantised_bytes(model: Architecture, setting: Setting) -> int:
    """Bytes of the largest quantised matrix in the type that it is multiplied in: bitsandbytes makes it anew for each
    product (``MatMul4Bit``).
    """
    return model.largest * setting.stored if setting.precision in QUANTISED else 0


def trained_parameters(model: Architecture, setting: Setting) -> int:
    """Weights that an optimiser changes."""
    if not setting.trains:
        return 0
    if setting.tuning == "full":
        return model.parameters
    return model.adapter_parameters(setting.r, setting.targets, setting.lora_vision)


def adapter_bytes(model: Architecture, setting: Setting) -> int:
    """The adapter in float32 (peft's ``autocast_adapter_dtype``), and the bfloat16 copy that a pass without gradient
    checkpointing keeps of it under autocast.
    """
    if setting.tuning == "full":
        return 0
    copy = 2 if setting.trains and setting.mixed and not setting.checkpointing else 0
    return (FLOAT + copy) * model.adapter_parameters(setting.r, setting.targets, setting.lora_vision)


def autocast_copies(model: Architecture, setting: Setting) -> int:
    """The bfloat16 adapter that autocast keeps until its block ends (trace)."""
    if setting.tuning == "full" or not setting.mixed:
        return 0
    return 2 * model.adapter_parameters(setting.r, setting.targets, setting.lora_vision)


def gradient_bytes(model: Architecture, setting: Setting) -> int:
    """One number for each trained weight, in the weight's own type."""
    each = setting.stored if setting.tuning == "full" else FLOAT
    return each * trained_parameters(model, setting)


def optimizer_bytes(model: Architecture, setting: Setting) -> int:
    """AdamW's two moments (Loshchilov & Hutter 2019, arXiv 1711.05101) for each trained weight: in the weight's type,
    or in 8 bits with a float32 scale a block of 256 (Dettmers et al. 2022, arXiv 2110.02861).

    Paged state counts like any other: it leaves the card only when the card is full.
    """
    weights = trained_parameters(model, setting)
    if "8bit" in setting.optimizer:
        return 2 * (weights + FLOAT * -(-weights // OUTER_BLOCK))
    return 2 * (setting.stored if setting.tuning == "full" else FLOAT) * weights


def reference_bytes(model: Architecture, setting: Setting) -> int:
    """The frozen reference of a KL term: a copy of the adapter that GRPO went on from, or of the whole model after full
    fine-tuning; a new adapter is switched off instead and takes nothing (TRL's ``GRPOTrainer``).
    """
    if setting.reference == "adapter":
        return FLOAT * model.adapter_parameters(setting.r, setting.targets, setting.lora_vision)
    return setting.stored * model.parameters if setting.reference == "model" else 0
