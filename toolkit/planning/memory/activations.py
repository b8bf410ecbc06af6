"""Bytes of what a training pass keeps for its backward pass, and of what it needs while it works.

The counts follow the tensors that torch saves, operation by operation (Korthikanti et al. 2022, arXiv 2205.05198, 4.1,
for the method): a norm keeps its input in float32; attention without its scores (arXiv 2205.14135) keeps queries, keys,
values and its output; a gated MLP keeps three inner tensors. A LoRA layer keeps its own input beside that; the frozen
layer under it keeps none, since its weights need no gradient.
"""

import math
from dataclasses import dataclass

from toolkit.planning.architecture import Architecture, Stack, Tower
from toolkit.planning.memory import rollout
from toolkit.planning.memory.setting import QUANTISED, Setting
from toolkit.planning.memory.weights import (
    FLOAT,
    autocast_copies,
    dequantised_bytes,
    norm_value,
    quantises_tower,
    tower_value,
)

SLICE, SLICED_BYTES = 128 * 2**20, 8
"""What a slice of SFT's loss takes at most, and its bytes a logit (``backends.sft_loss``)."""
FUSED_TARGET, FUSED_BYTES = 4 * 2**30, 16
"""What Unsloth's fused loss takes at most, and the bytes a logit that it reckons with (unsloth_zoo 2026.10.7)."""


@dataclass(frozen=True, slots=True)
class _Layers:
    """Layers of one stack that a training pass goes backward through."""

    stack: Stack
    positions: int
    """Of all rows: tokens, or patches."""
    length: int
    """Of one row or image: what attention spans."""
    adapted: tuple[str, ...]
    """Names of the linear layers that have an adapter."""
    value: int
    """Bytes of an activation."""
    quantised: bool
    casts: bool = False
    """Its norms return float32, which its layers in 16 bits cast."""


def _kept_a_position(layers: _Layers, setting: Setting) -> int:
    """Bytes that one layer keeps of a token or patch for its backward pass."""
    stack, value = layers.stack, layers.value
    norms = FLOAT * stack.width * stack.norms + (FLOAT * (stack.query + stack.key) if stack.head_norms else 0)
    repeated = stack.expanded or setting.rows > 1  # a mask is there, for which keys and values meet every head
    key = stack.query if repeated else stack.key
    attention = value * (2 * stack.query + 2 * key)
    mlp = value * stack.inner * (3 if stack.gated else 2)
    return norms + attention + mlp + _inputs_a_position(layers, setting)


def _inputs_a_position(layers: _Layers, setting: Setting) -> int:
    """Inputs of linear layers that are trained or have an adapter.

    They are shared (queries, keys and values have one) unless each adapter makes a copy of its own: by its dropout,
    which keeps a mask of a byte a number too, or by peft's cast to the adapter's float32 where the layer is not
    quantised.
    """
    stack, adapted, trained = layers.stack, layers.adapted, setting.tuning == "full"
    widths = {"o_proj": stack.query, "out_proj": stack.query, "proj": stack.query, "down_proj": stack.inner}
    widths |= {"fc2": stack.inner, "linear_fc2": stack.inner}
    each = [widths.get(name, stack.width) for name in adapted]
    ranks = setting.value * setting.r * len(adapted)
    own_copies = setting.dropout or (setting.mixed and not layers.quantised)
    if adapted and own_copies:
        mask = 1 if setting.dropout else 0
        return sum((setting.value + mask) * width for width in each) + ranks
    if adapted or trained:
        shared = 2 * stack.width + stack.query + stack.inner
        return setting.value * min(shared, sum(each) if adapted else shared) + ranks
    return 0


def _scores(layers: _Layers, setting: Setting) -> int:
    """Attention's scores of one layer where it is ``eager``: the float32 softmax and two copies."""
    if not setting.eager:
        return 0
    return layers.stack.heads * layers.length * layers.positions * (FLOAT + 2 * setting.value)


def _transient_a_position(layers: _Layers, setting: Setting) -> int:
    """Bytes of the gradients that are alive at once in the MLP's backward pass: two inner tensors, in float32 where an
    adapter casts its input to its own type.
    """
    wide = not setting.mixed or not layers.quantised
    return 2 * layers.stack.inner * (FLOAT if wide else 2)


def language_names(model: Architecture, setting: Setting) -> tuple[str, ...]:
    """Linear layers of a language layer that the adapter goes on, by name."""
    if setting.tuning == "full":
        return ()
    there = {one.name for one in model.linears if not one.vision}
    return tuple(name for name in setting.targets if name in there)


def tower_names(model: Architecture, setting: Setting) -> tuple[str, ...]:
    """Those of a layer of the vision tower: names that occur as often as it has layers, or more often."""
    if model.vision is None or setting.tuning == "full" or not setting.lora_vision:
        return ()
    return tuple(dict.fromkeys(one.name for one in model.tower_linears))


def tower_has_graph(tower: Tower, setting: Setting) -> bool:
    """Whether a training pass keeps the vision tower for its backward pass.

    The hf backend keeps nothing of a frozen tower (``models.hf.disable_input_gradients``). With Unsloth's
    checkpointing a hook has the tower's embeddings require gradients, if transformers finds them.
    """
    hooked = setting.backend == "unsloth" and setting.checkpointing and tower.hooked
    return setting.tuning == "full" or setting.lora_vision or hooked


def kept_bytes(model: Architecture, setting: Setting) -> int:
    """What a pass keeps until its backward pass: with gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) the
    input of every layer, otherwise all that every layer keeps.
    """
    kept = sum(_kept(layers, setting) for layers in _layers_with_a_graph(model, setting))
    tower = model.vision
    if tower is None or not setting.row.patches or not tower_has_graph(tower, setting):
        return kept
    an_image_token = FLOAT * tower.stack.width + setting.value * model.language.width  # into the projector, and out
    return kept + an_image_token * setting.rows * setting.row.images


def _kept(layers: _Layers, setting: Setting) -> int:
    """Beside the layers' part: the embeddings, the last hidden state, the last norm's input in float32 (and its output
    where that is another float32 tensor), and the sines and cosines of the positions.
    """
    stack = layers.stack
    norm = 2 * FLOAT if layers.casts else FLOAT
    ends = ((norm + 2 * layers.value) * stack.width + 2 * FLOAT * stack.head_width) * layers.positions
    if setting.checkpointing:
        return ends + layers.value * stack.width * layers.positions * stack.layers
    return ends + stack.layers * (_kept_a_position(layers, setting) * layers.positions + _scores(layers, setting))


def layer_bytes(model: Architecture, setting: Setting) -> int:
    """What the backward pass of one layer needs while it works: with gradient checkpointing all that the layer keeps,
    computed anew; its gradients; and a dequantised matrix. The larger of a language layer and a layer of the tower, or
    the forward pass of a tower of which nothing is kept.
    """
    found = []
    for layers in _layers_with_a_graph(model, setting):
        each, again = _transient_a_position(layers, setting), 0
        if setting.checkpointing:
            each += _kept_a_position(layers, setting)
            again = _scores(layers, setting)
        found.append(each * layers.positions + again)
    largest = max(found) + dequantised_bytes(model, setting)
    if model.vision is None or tower_has_graph(model.vision, setting):
        return largest
    patches = setting.rows * setting.row.patches
    return max(largest, rollout.tower_bytes(model, setting, patches, autocast=setting.mixed))


def _layers_with_a_graph(model: Architecture, setting: Setting) -> list[_Layers]:
    tokens, names = setting.rows * setting.tokens, language_names(model, setting)
    packed = setting.precision in QUANTISED
    found = [_Layers(model.language, tokens, setting.tokens, names, setting.value, packed)]
    patches, tower = setting.rows * setting.row.patches, model.vision
    if tower is not None and patches and tower_has_graph(tower, setting):
        value, packed = tower_value(model, setting, autocast=setting.mixed), quantises_tower(model, setting)
        casts = norm_value(model, setting, autocast=setting.mixed) > value
        an_image = setting.row.patches // max(1, setting.row.pictures)  # attention stays within an image
        found.append(_Layers(tower.stack, patches, an_image, tower_names(model, setting), value, packed, casts))
    return found


def logits_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """The vocabulary's logits and what their loss makes of them, at most at once.

    Args:
        model: the architecture.
        setting: the stage.
        free: bytes of the GPU that nothing takes when the loss begins. None: many.
    """
    if setting.stage == "grpo" and setting.backend == "hf":
        return grpo_logits_bytes(model, setting)  # outside of autocast, whose copies are gone
    # Without checkpointing the backward pass keeps the copies too (``weights.adapter_bytes``).
    copies = autocast_copies(model, setting) if setting.checkpointing else 0
    if setting.stage == "grpo":
        return copies + _sliced_logps_bytes(model, setting)
    if setting.backend == "unsloth":
        return copies + _fused_loss_bytes(model, setting, free)
    return copies + sft_logits_bytes(model, setting)


def fused_slice_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """One float32 tensor of a slice of Unsloth's fused loss. Others do not slice, or in smaller pieces: 0."""
    if setting.stage != "sft" or setting.backend != "unsloth":
        return 0
    return FLOAT * _fused_slice(model, setting, free) * model.vocabulary


def largest_logits(model: Architecture, setting: Setting) -> int:
    """The largest tensor of the loss that is not kept."""
    if setting.stage == "sft" or setting.backend == "unsloth":
        return largest_inner(model, setting)
    return FLOAT * setting.rows * setting.answer_tokens * model.vocabulary


def largest_inner(model: Architecture, setting: Setting) -> int:
    """The largest tensor of a layer's backward pass: the inner one of its MLP."""
    return setting.value * model.language.inner * setting.rows * setting.tokens


def _fused_loss_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """Unsloth's fused loss of SFT: all positions in slices, beside the gradient of the hidden states."""
    gradient = setting.value * setting.rows * setting.tokens * model.language.width
    return gradient + (setting.value + 3 * FLOAT) * _fused_slice(model, setting, free) * model.vocabulary


def _fused_slice(model: Architecture, setting: Setting, free: int | None) -> int:
    """Positions of a slice, which Unsloth sizes by half of the free memory, at most 4 GiB
    (``fused_losses/cross_entropy_loss.py``).
    """
    positions = setting.rows * setting.tokens
    gradient = setting.value * positions * model.language.width
    target = FUSED_TARGET if free is None else min(FUSED_TARGET, max(1, free // 2))
    budget = target - gradient if target > gradient else target
    quarters = positions * model.vocabulary * FUSED_BYTES / budget
    slices = 1 if quarters <= 1 else min(positions, 4 * math.ceil(quarters / 4))
    return -(-positions // slices)


def _sliced_logps_bytes(model: Architecture, setting: Setting) -> int:
    """Unsloth's log-probabilities: float32 logits of every completion token are kept for the backward pass, which makes
    two more tensors of one slice, a fourth of a row (``chunked_hidden_states_selective_log_softmax``).
    """
    a_row = setting.answer_tokens * model.vocabulary
    return FLOAT * setting.rows * a_row + (setting.value + 2 * FLOAT) * -(-a_row // 4)


def sft_logits_bytes(model: Architecture, setting: Setting) -> int:
    """SFT's loss over the supervised positions, in slices of at most ``SLICE`` bytes, or of one position; beside it
    their hidden states and the gradients of these.
    """
    positions = setting.rows * setting.row.answer
    a_slice = min(positions * model.vocabulary * SLICED_BYTES, max(SLICE, model.vocabulary * SLICED_BYTES))
    return a_slice + 2 * setting.value * positions * model.language.width


def grpo_logits_bytes(model: Architecture, setting: Setting) -> int:
    """GRPO's log-probabilities: logits of every completion token in float32, and three more tensors of their size where
    their backward pass begins (TRL's ``_get_per_token_logps_and_entropies``).
    """
    return 4 * FLOAT * setting.rows * setting.answer_tokens * model.vocabulary
