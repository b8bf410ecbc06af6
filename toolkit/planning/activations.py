"""Bytes of activations of training: what a pass saves for its backward pass, and what its loss needs.

The counts follow the tensors that torch saves, operation by operation (method: Korthikanti et al. 2022, arXiv
2205.05198, 4.1). A norm saves its input in float32. Attention without stored scores (arXiv 2205.14135) saves queries,
keys, values and its output. A gated MLP saves three inner tensors. A LoRA layer also saves its own input. The frozen
layer below it saves none, because its parameters need no gradient.
"""

import math
from dataclasses import dataclass

from toolkit.planning.architecture import FLOAT, Architecture, Stack, Tower
from toolkit.planning.generation import tower_bytes
from toolkit.planning.stages import QUANTIZED, Setting
from toolkit.planning.weights import autocast_copies, dequantized_bytes, norm_value, quantizes_tower, tower_value

SLICE, SLICED_BYTES = 128 * 2**20, 8
"""Most bytes of a slice of the SFT loss, and its bytes for each logit (``toolkit.training.sft_loss``)."""

FUSED_TARGET, FUSED_BYTES = 4 * 2**30, 16
"""Most bytes of Unsloth's fused loss, and the bytes for each logit that it assumes (unsloth_zoo 2026.10.7)."""


def saved_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes that a pass saves until its backward pass.

    With gradient checkpointing (Chen et al. 2016, arXiv 1604.06174), this is the input of every layer. Otherwise it is
    everything that every layer saves.
    """
    saved = sum(_saved(layers, setting) for layers in _layers_with_a_graph(model, setting))
    tower = model.vision
    if tower is None or not setting.row.patches or not tower_has_graph(tower, setting):
        return saved
    # Each image token is an input of the projector in float32, and an output.
    projector = FLOAT * tower.stack.width + setting.value * model.language.width
    return saved + projector * setting.rows * setting.row.images


def layer_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes that the backward pass of one layer needs while it runs.

    With gradient checkpointing, everything that the layer saves is recomputed. Gradients and a dequantized matrix are
    added. The result is the larger of a language layer and a layer of the vision tower, or the forward pass of a tower
    without a graph.
    """
    found = []
    for layers in _layers_with_a_graph(model, setting):
        each, again = _transient_a_position(layers, setting), 0
        if setting.checkpointing:
            each += _saved_a_position(layers, setting)
            again = _scores(layers, setting) + _pair_mask(layers, setting)
        found.append(each * layers.positions + again)
    largest = max(found) + dequantized_bytes(model, setting)
    if model.vision is None or tower_has_graph(model.vision, setting):
        return largest
    patches = setting.rows * setting.row.patches
    return max(largest, tower_bytes(model, setting, patches, autocast=setting.mixed))


def logits_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """Return the most bytes of the logits and of their loss.

    Args:
        model: the architecture.
        setting: the stage.
        free: free bytes of the GPU when the loss starts. None: unlimited.
    """
    if setting.stage == "grpo" and setting.backend == "hf":
        return grpo_logits_bytes(model, setting)  # TRL computes them outside autocast, whose copies are freed.
    if setting.stage == "dpo":
        return dpo_logits_bytes(model, setting)
    # Without checkpointing, ``weights.adapter_bytes`` includes the copies, because the backward pass keeps them.
    copies = autocast_copies(model, setting) if setting.checkpointing else 0
    if setting.stage == "grpo":
        return copies + _sliced_logps_bytes(model, setting)
    if setting.backend == "unsloth":
        return copies + _fused_loss_bytes(model, setting, free)
    return copies + sft_logits_bytes(model, setting)


def sft_logits_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the SFT loss over the supervised positions.

    The loss is computed in slices of at most ``SLICE`` bytes, or of one position. Hidden states of the positions and
    their gradients are added.
    """
    positions = setting.rows * setting.row.supervised
    a_slice = min(positions * model.vocabulary * SLICED_BYTES, max(SLICE, model.vocabulary * SLICED_BYTES))
    return a_slice + 2 * setting.value * positions * model.language.width


def grpo_logits_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of GRPO's log-probabilities.

    These are logits of every completion token in float32, and three more tensors of their size at the start of the
    backward pass (TRL's ``_get_per_token_logps_and_entropies``).
    """
    return 4 * FLOAT * setting.rows * setting.packed * setting.answer_tokens * model.vocabulary


def dpo_logits_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of DPO's log-probabilities.

    These are logits of every token of both rows of a pair, prompts included, in float32, and three more tensors of
    their size at the start of the backward pass, as in GRPO (TRL's ``selective_log_softmax``). The logits of the
    reference are freed before.
    """
    return 4 * FLOAT * setting.rows * setting.tokens * model.vocabulary


def fused_slice_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """Return the bytes of one float32 tensor of a slice of Unsloth's fused loss. 0: the loss is not Unsloth's."""
    if setting.stage != "sft" or setting.backend != "unsloth":
        return 0
    return FLOAT * _fused_slice(model, setting, free) * model.vocabulary


def largest_logits(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the largest temporary tensor of the loss."""
    if setting.stage == "sft" or setting.backend == "unsloth":
        return largest_inner(model, setting)
    tokens = setting.tokens if setting.stage == "dpo" else setting.packed * setting.answer_tokens
    return FLOAT * setting.rows * tokens * model.vocabulary


def largest_inner(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the largest tensor in the backward pass of a layer, the inner one of its MLP."""
    return setting.value * model.language.inner * setting.rows * setting.tokens


def tower_has_graph(tower: Tower, setting: Setting) -> bool:
    """Return whether a training pass saves activations of the vision tower.

    The hf backend saves none of a frozen tower. With Unsloth's gradient checkpointing, a hook makes the embeddings of
    the tower require gradients, if transformers finds them.
    """
    hooked = setting.backend == "unsloth" and setting.checkpointing and tower.hooked
    return setting.tuning == "full" or setting.lora_vision or hooked


def language_names(model: Architecture, setting: Setting) -> tuple[str, ...]:
    """Return the names of the linear layers with an adapter in a language layer."""
    if setting.tuning == "full":
        return ()
    available = {one.name for one in model.linears if not one.vision}
    return tuple(name for name in setting.targets if name in available)


def tower_names(model: Architecture, setting: Setting) -> tuple[str, ...]:
    """Return the names of the linear layers with an adapter in a layer of the vision tower."""
    if model.vision is None or setting.tuning == "full" or not setting.lora_vision:
        return ()
    return tuple(dict.fromkeys(one.name for one in model.tower_linears))


@dataclass(frozen=True, slots=True)
class _Layers:
    """Layers of one stack with a backward pass."""

    stack: Stack
    positions: int
    """Tokens or patches of all rows."""
    length: int
    """Tokens of a row or patches of an image, over which attention extends."""
    adapted: tuple[str, ...]
    """Names of the linear layers with an adapter."""
    value: int
    """Bytes of an activation."""
    quantized: bool
    casts: bool = False
    """The norms return float32, which layers in 16 bits cast."""


def _layers_with_a_graph(model: Architecture, setting: Setting) -> list[_Layers]:
    tokens, names = setting.rows * setting.tokens, language_names(model, setting)
    packed = setting.precision in QUANTIZED
    found = [_Layers(model.language, tokens, setting.tokens, names, setting.value, packed)]
    patches, tower = setting.rows * setting.row.patches, model.vision
    if tower is not None and patches and tower_has_graph(tower, setting):
        value, packed = tower_value(model, setting, autocast=setting.mixed), quantizes_tower(model, setting)
        casts = norm_value(model, setting, autocast=setting.mixed) > value
        patches_of_image = setting.row.patches // max(1, setting.row.image_count)  # attention stays within an image
        found.append(_Layers(tower.stack, patches, patches_of_image, tower_names(model, setting), value, packed, casts))
    return found


def _saved(layers: _Layers, setting: Setting) -> int:
    """Return the bytes that the layers of one stack save.

    These include the embeddings, the last hidden state, the input of the last norm in float32 (and its output if that
    is another float32 tensor), and the sines and cosines of the positions.
    """
    stack = layers.stack
    norm = 2 * FLOAT if layers.casts else FLOAT
    ends = ((norm + 2 * layers.value) * stack.width + 2 * FLOAT * stack.head_width) * layers.positions
    if setting.checkpointing:
        return ends + layers.value * stack.width * layers.positions * stack.layers
    pairs = _scores(layers, setting) + _pair_mask(layers, setting)
    return ends + stack.layers * (_saved_a_position(layers, setting) * layers.positions + pairs)


def _saved_a_position(layers: _Layers, setting: Setting) -> int:
    """Return the bytes that one layer saves for the backward pass of a token or patch."""
    stack, value = layers.stack, layers.value
    norms = FLOAT * stack.width * stack.norms + (FLOAT * (stack.query + stack.key) if stack.head_norms else 0)
    repeated = (
        stack.expanded or setting.rows > 1 or setting.packed > 1
    )  # With a mask, keys and values are repeated for every head.
    key = stack.query if repeated else stack.key
    attention = value * (2 * stack.query + 2 * key)
    mlp = value * stack.inner * (3 if stack.gated else 2)
    return norms + attention + mlp + _inputs_a_position(layers, setting)


def _inputs_a_position(layers: _Layers, setting: Setting) -> int:
    """Return the bytes of the inputs of linear layers that are trained or have an adapter.

    Queries, keys and values have one input, unless each adapter makes its own copy. Dropout makes a copy and a mask of
    one byte for each number. peft's cast to the float32 of the adapter makes a copy if the layer is not quantized.
    """
    stack, adapted, trained = layers.stack, layers.adapted, setting.tuning == "full"
    widths = {"o_proj": stack.query, "out_proj": stack.query, "proj": stack.query, "down_proj": stack.inner}
    widths |= {"fc2": stack.inner, "linear_fc2": stack.inner}
    each = [widths.get(name, stack.width) for name in adapted]
    ranks = setting.value * setting.r * len(adapted)
    own_copies = setting.dropout or (setting.mixed and not layers.quantized)
    if adapted and own_copies:
        mask = 1 if setting.dropout else 0
        return sum((setting.value + mask) * width for width in each) + ranks
    if adapted or trained:
        distinct = 2 * stack.width + stack.query + stack.inner
        return setting.value * min(distinct, sum(each) if adapted else distinct) + ranks
    return 0


def _scores(layers: _Layers, setting: Setting) -> int:
    """Return the bytes of the scores of eager attention in one layer: the float32 softmax and two copies."""
    if not setting.eager:
        return 0
    return layers.stack.heads * layers.length * layers.positions * (FLOAT + 2 * setting.value)


def _pair_mask(layers: _Layers, setting: Setting) -> int:
    """Return the bytes of the mask of a packed row in one language layer, which attention saves for its backward pass.

    torch converts the mask to numbers of the type of the queries.
    """
    if setting.packed == 1 or setting.eager or layers.length != setting.tokens:
        return 0
    return layers.value * layers.length * layers.positions


def _transient_a_position(layers: _Layers, setting: Setting) -> int:
    """Return the bytes of the gradients that exist at once in the backward pass of the MLP.

    These are two inner tensors, in float32 if an adapter casts its input to its own type.
    """
    wide = not setting.mixed or not layers.quantized
    return 2 * layers.stack.inner * (FLOAT if wide else 2)


def _fused_loss_bytes(model: Architecture, setting: Setting, free: int | None) -> int:
    """Return the bytes of Unsloth's fused SFT loss: all positions in slices, and the gradient of the hidden states."""
    gradient = setting.value * setting.rows * setting.tokens * model.language.width
    return gradient + (setting.value + 3 * FLOAT) * _fused_slice(model, setting, free) * model.vocabulary


def _fused_slice(model: Architecture, setting: Setting, free: int | None) -> int:
    """Return the positions of a slice. Unsloth's target is half of the free GPU memory, at most 4 GiB.

    Source: ``fused_losses/cross_entropy_loss.py`` of unsloth_zoo.
    """
    positions = setting.rows * setting.tokens
    gradient = setting.value * positions * model.language.width
    target = FUSED_TARGET if free is None else min(FUSED_TARGET, max(1, free // 2))
    budget = target - gradient if target > gradient else target
    quarters = positions * model.vocabulary * FUSED_BYTES / budget
    slices = 1 if quarters <= 1 else min(positions, 4 * math.ceil(quarters / 4))
    return -(-positions // slices)


def _sliced_logps_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of Unsloth's log-probabilities.

    float32 logits of every completion token are saved for the backward pass, which makes two more tensors of one slice,
    a quarter of a row (``chunked_hidden_states_selective_log_softmax``).
    """
    a_row = setting.answer_tokens * model.vocabulary
    return FLOAT * setting.rows * a_row + (setting.value + 2 * FLOAT) * -(-a_row // 4)
