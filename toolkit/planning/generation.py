"""Bytes that generation allocates: vision tower, prefill and decoding.

The three phases do not overlap. The vision tower has finished before the first layer caches a key, and temporary
tensors of prefill are freed before decoding. Formulas marked "trace" follow the tensors that are alive at the peak of
an allocation trace (tests/benchmarks/bench_memory.py).
"""

from toolkit.planning.architecture import FLOAT, Architecture, Tower
from toolkit.planning.stages import Setting
from toolkit.planning.weights import dequantized_bytes, norm_value, quantizes_tower, tower_value

IDS = 5 * 8
"""Bytes of a prompt token: ids, attention mask, token types and copies of them, each in 64 bits."""

ROTARY_SETS = 3
"""Sets of cosines and sines of a position, each as wide as a head. Qwen2-VL and Qwen2.5-VL have one for each of three
axes, Gemma 3 one for each of two kinds of layers, others one."""


def input_bytes(model: Architecture, rows: int, setting: Setting) -> int:
    """Return the bytes of the pixel values of ``rows`` rows, which processors return in float32."""
    if model.vision is None:
        return 0
    tower = model.vision
    return FLOAT * tower.channels * tower.frames * tower.patch**2 * setting.row.patches * rows


def tower_bytes(model: Architecture, setting: Setting, patches: int, *, autocast: bool) -> int:
    """Return the bytes that a layer of the vision tower needs in a forward pass over ``patches`` without a graph."""
    if model.vision is None or not patches:
        return 0
    matrix = dequantized_bytes(model, setting) if quantizes_tower(model, setting) else 0
    value, norm = tower_value(model, setting, autocast=autocast), norm_value(model, setting, autocast=autocast)
    return _tower_a_patch(model.vision, setting, value, norm) * patches + matrix


def embedding_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the embedded prompts, which receive the output of the tower, with ids, types and masks
    (trace)."""
    return (setting.stored * model.language.width + IDS) * setting.concurrent * setting.row.prompt


def prompt_cache_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the KV cache at the end of prefill.

    Sliding layers also keep the whole prompt until the first token is generated, because their cache is a view of it. A
    static cache (Unsloth) has its full length from the start.
    """
    stack = model.language
    return 2 * stack.key * setting.stored * stack.layers * _cached_tokens(model, setting) * setting.concurrent


def prefill_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes that a language layer needs while all prompts pass at once, without gradients.

    The peak is in the MLP, when the adapter of the last projection is added (trace). The masks (a byte for each pair of
    tokens) and the rotary embedding of the positions are added.
    """
    stack, prompts = model.language, setting.concurrent * setting.row.prompt
    value = setting.stored
    a_token = value * (4 * stack.width + 3 * stack.inner)
    if setting.tuning == "lora":
        wide = _lora_value(setting)
        copy = wide * stack.width if wide != value else 0
        a_token = value * (4 * stack.width + 2 * stack.inner) + copy + 2 * wide * stack.inner
    pairs = setting.row.prompt * _cached_tokens(model, setting)
    masks = (2 if model.sliding_layers else 1) * setting.concurrent * pairs
    needed = (a_token + 2 * value * ROTARY_SETS * stack.head_width) * prompts + masks
    if setting.eager:
        needed += setting.concurrent * stack.heads * setting.row.prompt**2 * (FLOAT + 2 * value)
    return needed + dequantized_bytes(model, setting)


def features_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the image features during prefill.

    With deep features, these include the last hidden state, and the features of each level with a copy of the last ones
    (trace).
    """
    tower = model.vision
    if tower is None:
        return 0
    value = tower_value(model, setting, autocast=samples_under_autocast(setting))
    if not tower.deep:
        return setting.concurrent * value * setting.row.images * model.language.width
    features = (value * (1 + tower.deep) + setting.stored) * setting.row.images * model.language.width
    return setting.concurrent * (features + value * setting.row.patches * tower.stack.width)


def kv_cache_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of keys and values of every layer, for all completions that are generated at once.

    A sliding layer keeps the last ``sliding_window - 1`` tokens (transformers' ``DynamicSlidingWindowLayer``).
    """
    stack, length = model.language, setting.row.prompt + setting.answer_tokens
    short = min(length, (model.sliding_window or length + 1) - 1)
    positions = (stack.layers - model.sliding_layers) * length + model.sliding_layers * short
    return 2 * stack.key * setting.stored * positions * setting.concurrent


def decoding_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes that a decoding step needs besides the cache.

    These are keys and values of one layer, repeated for every head because there is a mask (transformers'
    ``sdpa_attention_forward``).
    """
    length = setting.row.prompt + setting.answer_tokens
    return 2 * model.language.query * setting.stored * length * setting.concurrent + dequantized_bytes(model, setting)


def sampling_bytes(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the next token's logits for every completion, and of three float32 tensors of their size."""
    return (setting.stored + 3 * FLOAT) * model.vocabulary * setting.concurrent


def largest_in_tower(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the tower's largest tensor: the inner one of an MLP, or three projections at once."""
    if model.vision is None:
        return 0
    value = tower_value(model, setting, autocast=samples_under_autocast(setting))
    width = max(model.vision.stack.inner, 3 * model.vision.stack.query)
    return value * width * setting.concurrent * setting.row.patches


def largest_in_prefill(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the largest tensor of prefill: the inner one of an MLP, or what its adapter adds to it."""
    wide = _lora_value(setting) if setting.tuning == "lora" else setting.stored
    return wide * model.language.inner * setting.concurrent * setting.row.prompt


def samples_under_autocast(setting: Setting) -> bool:
    """Return whether generation runs under autocast: with Unsloth, but not with transformers."""
    return setting.backend == "unsloth" and setting.mixed


def _tower_a_patch(tower: Tower, setting: Setting, value: int, norm: int) -> int:
    """Return the larger peak for a patch: that of the MLP, or that of the rotary embedding (trace).

    The MLP has four tensors of the hidden size (residual, its sum, the norm's output, the embeddings) and the inner
    ones. Towers with rotary embeddings compute queries and keys in float32: residual, norm and three projections, then
    float32 queries and keys, and four products.
    """
    stack = tower.stack
    mlp = norm * stack.width + value * (3 * stack.width + tower.inner_tensors * stack.inner)
    if setting.lora_vision:
        mlp += 2 * _lora_value(setting) * stack.inner
    if not tower.rotary:
        return mlp
    copies = 2 * FLOAT * stack.query if value != FLOAT else 0
    rotary = (norm + value) * stack.width + 3 * value * stack.query + copies + 4 * FLOAT * stack.query
    return max(mlp, rotary)


def _lora_value(setting: Setting) -> int:
    """Return the bytes of a number in an adapter: float32 outside autocast. Unsloth samples under autocast."""
    return setting.stored if samples_under_autocast(setting) else FLOAT


def _cached_tokens(model: Architecture, setting: Setting) -> int:
    """Return the tokens of a row for which prefill allocates cache and masks."""
    return setting.row.prompt + (setting.answer_tokens if _static_cache(model, setting) else 0)


def _static_cache(model: Architecture, setting: Setting) -> bool:
    """Return whether the KV cache is static.

    Unsloth uses a static cache unless image tokens need their own mask (``unsloth_base_fast_generate``).
    """
    return setting.backend == "unsloth" and not model.language.expanded
