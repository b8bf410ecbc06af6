"""Bytes of writing answers: the KV cache of all answers that are written at once, and the pass over their prompts."""

from toolkit.plan.architecture import Architecture, Stack
from toolkit.plan.memory.setting import Setting
from toolkit.plan.memory.weights import FLOAT, dequantised_bytes


def kv_cache_bytes(model: Architecture, setting: Setting) -> int:
    """Keys and values of every layer for prompt and answer of all answers that are written at once.

    TRL's trainer writes all completions of a step in one batch; a sliding layer keeps the last ``sliding_window - 1``
    tokens (transformers' ``DynamicSlidingWindowLayer``).
    """
    stack, length = model.language, setting.row.prompt + setting.answer_tokens
    short = min(length, (model.sliding_window or length + 1) - 1)
    positions = (stack.layers - model.sliding_layers) * length + model.sliding_layers * short
    return 2 * stack.key * setting.stored * positions * setting.concurrent


def prompt_cache_bytes(model: Architecture, setting: Setting) -> int:
    """The same for the prompts alone: sliding layers too keep all of a prompt until the first token is written, since
    what they keep is a view of it.
    """
    stack = model.language
    return 2 * stack.key * setting.stored * stack.layers * setting.row.prompt * setting.concurrent


def prefill_bytes(model: Architecture, setting: Setting) -> int:
    """What a layer needs while all prompts pass at once, without gradients; or the tower's with all their pictures."""
    prompts = setting.concurrent * setting.row.prompt
    needed = _forward_a_token(model.language, setting, adapted=setting.tuning == "lora") * prompts
    if setting.eager:
        needed += setting.concurrent * model.language.heads * setting.row.prompt**2 * (FLOAT + 2 * setting.stored)
    if model.vision is not None:
        a_patch = _forward_a_token(model.vision.stack, setting, adapted=setting.lora_vision)
        needed = max(needed, a_patch * setting.concurrent * setting.row.patches)
    return needed + dequantised_bytes(model, setting)


def sampling_bytes(model: Architecture, setting: Setting) -> int:
    """Logits of the next token of every answer, in float32, with the copies that choosing among them makes."""
    return 4 * FLOAT * model.vocabulary * setting.concurrent


def input_bytes(model: Architecture, rows: int, setting: Setting) -> int:
    """Pixels of the pictures in float32, as processors hand them over, for ``rows`` rows."""
    if model.vision is None:
        return 0
    tower = model.vision
    return FLOAT * tower.channels * tower.frames * tower.patch**2 * setting.row.patches * rows


def _forward_a_token(stack: Stack, setting: Setting, *, adapted: bool) -> int:
    """Residual, norm, and the larger of attention and MLP.

    An adapter works in float32 outside of autocast: where it widens to the MLP's inner size, its output and the scaled
    output are there in float32, beside the layer's own, a copy or the sum of that, and the gate.
    """
    value = setting.stored
    attention = value * (2 * stack.query + 2 * stack.key + (2 * stack.query if stack.expanded else 0))
    mlp = value * stack.inner * (3 if stack.gated else 2)
    if adapted:
        mlp = stack.inner * (2 * FLOAT + 3 * value)
    return 2 * value * stack.width + 2 * FLOAT * stack.width + max(attention, mlp)
