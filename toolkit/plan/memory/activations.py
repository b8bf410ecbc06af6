"""Bytes of what a training pass keeps for its backward pass, and of what it needs while it works.

The counts follow the tensors that torch saves, operation by operation (Korthikanti et al. 2022, arXiv 2205.05198, 4.1,
for the method): a norm keeps its input in float32; attention without its scores (arXiv 2205.14135) keeps queries, keys,
values and its output; a gated MLP keeps three inner tensors. A LoRA layer keeps its own input beside that; the frozen
layer under it keeps none, since its weights need no gradient.
"""

from toolkit.plan.architecture import Architecture, Stack
from toolkit.plan.memory.setting import Setting
from toolkit.plan.memory.weights import FLOAT, dequantised_bytes

CHUNK = 256
"""Positions whose logits SFT computes at once (TRL's ``_CHUNKED_LM_HEAD_CHUNK_SIZE``)."""


def kept_a_token(stack: Stack, setting: Setting, *, adapted: tuple[str, ...], trained: bool) -> int:
    """Bytes a token that one layer keeps for its backward pass.

    Args:
        stack: the layer's widths.
        setting: types and dropout.
        adapted: names of its linear layers that have an adapter.
        trained: all of its linear layers are trained themselves.
    """
    value = setting.value
    norms = FLOAT * stack.width * stack.norms + (FLOAT * (stack.query + stack.key) if stack.head_norms else 0)
    key = stack.query if stack.expanded else stack.key
    attention = value * (2 * stack.query + 2 * key)
    mlp = value * stack.inner * (3 if stack.gated else 2)
    return norms + attention + mlp + _inputs_a_token(stack, setting, adapted, trained)


def _inputs_a_token(stack: Stack, setting: Setting, adapted: tuple[str, ...], trained: bool) -> int:
    """Inputs of linear layers that are trained or have an adapter.

    They are shared (queries, keys and values have one) unless each adapter makes a copy of its own: by its dropout,
    which keeps a mask of a byte a number too, or by peft's cast to the adapter's float32 where the layer is not
    quantised.
    """
    widths = {"o_proj": stack.query, "out_proj": stack.query, "proj": stack.query, "down_proj": stack.inner}
    widths |= {"fc2": stack.inner, "linear_fc2": stack.inner}
    each = [widths.get(name, stack.width) for name in adapted]
    ranks = setting.value * setting.r * len(adapted)
    own_copies = setting.dropout or (setting.mixed and setting.precision not in ("4bit", "8bit"))
    if adapted and own_copies:
        mask = 1 if setting.dropout else 0
        return sum((setting.value + mask) * width for width in each) + ranks
    if adapted or trained:
        shared = 2 * stack.width + stack.query + stack.inner
        return setting.value * min(shared, sum(each) if adapted else shared) + ranks
    return 0


def scores(stack: Stack, length: int, setting: Setting) -> int:
    """Attention's scores of one layer and row where it is ``eager``: the float32 softmax and two copies."""
    return stack.heads * length * length * (FLOAT + 2 * setting.value) if setting.eager else 0


def transient_a_token(stack: Stack, setting: Setting) -> int:
    """Bytes a token of the gradients that are alive at once in the MLP's backward pass: two inner tensors, in float32
    where an adapter casts its input to its own type.
    """
    wide = not setting.mixed or setting.precision not in ("4bit", "8bit")
    return 2 * stack.inner * (FLOAT if wide else 2)


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


def tower_has_graph(setting: Setting) -> bool:
    """Whether a training pass keeps the vision tower for its backward pass.

    Its weights are frozen unless the recipe says so; but with gradient checkpointing transformers' hook for adapters
    (``enable_input_require_grads``) makes the tower's embeddings ask for gradients too, so that it is kept as well.
    """
    return setting.tuning == "full" or setting.lora_vision or setting.checkpointing


def kept_bytes(model: Architecture, setting: Setting) -> int:
    """What a pass keeps until its backward pass: with gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) the
    input of every layer, else all that every layer keeps.
    """
    return sum(_kept(setting, *layer) for layer in _layers_with_a_graph(model, setting))


def _kept(setting: Setting, stack: Stack, positions: int, length: int, adapted: tuple[str, ...]) -> int:
    """Beside the layers' part: the embeddings, the last hidden state, and the last norm's input in float32."""
    ends = (FLOAT + 2 * setting.value) * stack.width * positions
    if setting.checkpointing:
        return ends + setting.value * stack.width * positions * stack.layers
    each = kept_a_token(stack, setting, adapted=adapted, trained=setting.tuning == "full")
    return ends + stack.layers * (each * positions + scores(stack, length, setting) * positions // max(1, length))


def layer_bytes(model: Architecture, setting: Setting) -> int:
    """What the backward pass of one layer needs while it works: with gradient checkpointing all that the layer keeps,
    computed anew; its gradients; and a dequantised matrix. The larger of a language layer and a layer of the tower.
    """
    found = []
    for stack, positions, length, adapted in _layers_with_a_graph(model, setting):
        each = transient_a_token(stack, setting)
        again = 0
        if setting.checkpointing:
            each += kept_a_token(stack, setting, adapted=adapted, trained=setting.tuning == "full")
            again = scores(stack, length, setting) * positions // max(1, length)
        found.append(each * positions + again)
    return max(found) + dequantised_bytes(model, setting)


def _layers_with_a_graph(model: Architecture, setting: Setting) -> list[tuple[Stack, int, int, tuple[str, ...]]]:
    tokens = setting.rows * setting.tokens
    layers = [(model.language, tokens, setting.tokens, language_names(model, setting))]
    patches = setting.rows * setting.row.patches
    if model.vision is not None and patches and tower_has_graph(setting):
        layers.append((model.vision.stack, patches, _longest(setting), tower_names(model, setting)))
    return layers


def _longest(setting: Setting) -> int:
    """Patches of one picture: attention in the tower stays within a picture."""
    return setting.row.patches // max(1, setting.row.pictures)


def sft_logits_bytes(model: Architecture, setting: Setting) -> int:
    """The loss of SFT in chunks of 256 positions (TRL's ``chunked_nll``).

    Under autocast the output head is copied to float32 and that copy to bfloat16 for every chunk: 6 bytes a number of
    it beside the chunk's logits; afterwards the bfloat16 copy stays beside four float32 tensors of their size.
    """
    positions = min(CHUNK, setting.rows * max(1, setting.tokens - 1))
    logits, head = positions * model.vocabulary, model.vocabulary * model.language.width
    if setting.mixed:
        return max(6 * head + 2 * logits, 2 * head + 18 * logits)
    return 5 * FLOAT * logits


def grpo_logits_bytes(model: Architecture, setting: Setting) -> int:
    """GRPO's log-probabilities: logits of every completion token in float32, and three more tensors of their size where
    their backward pass begins (TRL's ``_get_per_token_logps_and_entropies``).
    """
    return 4 * FLOAT * setting.rows * setting.answer_tokens * model.vocabulary
