"""Bytes of a rollout: the vision tower over all images, the pass over the prompts (prefill), and decoding.

The three never meet. The tower has finished before the first layer caches a key, and prefill's intermediate tensors are
gone when decoding begins. Formulas marked "trace" follow the tensors that are alive at the peak of an allocation trace
(tests/benchmarks/bench_memory.py).
"""

from toolkit.planning.architecture import Architecture, Tower
from toolkit.planning.memory.weights import FLOAT, dequantised_bytes, norm_value, quantises_tower, tower_value
from toolkit.planning.stages import Setting

IDS = 5 * 8
"""Bytes of a prompt's token: ids, attention mask, token kinds and copies of them, each in 64 bits."""

ROTARY_SETS = 3
"""Cosines and sines of a token's position, each of a head's width: Qwen2-VL and Qwen2.5-VL have one set for each of
three axes, Gemma 3 one for each of two kinds of layers, others one."""


def kv_cache_bytes(model: Architecture, setting: Setting) -> int:
    """Keys and values of every layer for prompt and completion of all completions that are generated at once.

    A sliding layer keeps the last ``sliding_window - 1`` tokens (transformers' ``DynamicSlidingWindowLayer``).
    """
    stack, length = model.language, setting.row.prompt + setting.answer_tokens
    short = min(length, (model.sliding_window or length + 1) - 1)
    positions = (stack.layers - model.sliding_layers) * length + model.sliding_layers * short
    return 2 * stack.key * setting.stored * positions * setting.concurrent


def prompt_cache_bytes(model: Architecture, setting: Setting) -> int:
    """The cache at the end of prefill. Sliding layers too keep all of a prompt until the first token is generated,
    since what they keep is a view of it. A static cache (Unsloth) has its full length from the beginning.
    """
    stack = model.language
    return 2 * stack.key * setting.stored * stack.layers * _cached_tokens(model, setting) * setting.concurrent


def tower_bytes(model: Architecture, setting: Setting, patches: int, *, autocast: bool) -> int:
    """What a layer of the vision tower needs in a forward pass over so many patches, of which nothing is kept."""
    if model.vision is None or not patches:
        return 0
    matrix = dequantised_bytes(model, setting) if quantises_tower(model, setting) else 0
    value, norm = tower_value(model, setting, autocast=autocast), norm_value(model, setting, autocast=autocast)
    return _tower_a_patch(model.vision, setting, value, norm) * patches + matrix


def embedding_bytes(model: Architecture, setting: Setting) -> int:
    """The embedded prompts, into which the tower's output is written, with their ids, kinds and masks (trace)."""
    return (setting.stored * model.language.width + IDS) * setting.concurrent * setting.row.prompt


def _tower_a_patch(tower: Tower, setting: Setting, value: int, norm: int) -> int:
    """The larger of the MLP's peak and that of the rotary embedding (trace).

    The MLP: four tensors of the layer's width (residual, its sum, the norm's output, the embeddings) and the inner
    ones. Towers with rotary embeddings turn queries and keys in float32: residual, norm and the three projections, then
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


def prefill_bytes(model: Architecture, setting: Setting) -> int:
    """What a language layer needs while all prompts pass at once, without gradients: its MLP, where the adapter of the
    last projection is added (trace); beside it the masks of the pass, a byte for each pair of tokens, and the rotary
    embedding of the positions.
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
    return needed + dequantised_bytes(model, setting)


def features_bytes(model: Architecture, setting: Setting) -> int:
    """What the tower leaves while the prompts pass: its features, and with deep features its last hidden state and the
    features of each level with a copy of the last ones (trace).
    """
    tower = model.vision
    if tower is None:
        return 0
    value = tower_value(model, setting, autocast=samples_under_autocast(setting))
    if not tower.deep:
        return setting.concurrent * value * setting.row.images * model.language.width
    features = (value * (1 + tower.deep) + setting.stored) * setting.row.images * model.language.width
    return setting.concurrent * (features + value * setting.row.patches * tower.stack.width)


def decoding_bytes(model: Architecture, setting: Setting) -> int:
    """What a decode step needs beside the cache: one layer's keys and values, repeated for every head because a mask is
    there (transformers' ``sdpa_attention_forward``).
    """
    length = setting.row.prompt + setting.answer_tokens
    return 2 * model.language.query * setting.stored * length * setting.concurrent + dequantised_bytes(model, setting)


def sampling_bytes(model: Architecture, setting: Setting) -> int:
    """Logits of the next token of every completion, and three tensors of their size in float32."""
    return (setting.stored + 3 * FLOAT) * model.vocabulary * setting.concurrent


def largest_in_tower(model: Architecture, setting: Setting) -> int:
    """The largest tensor of the tower's pass over all images: the inner one of an MLP, or three projections at once."""
    if model.vision is None:
        return 0
    value = tower_value(model, setting, autocast=samples_under_autocast(setting))
    width = max(model.vision.stack.inner, 3 * model.vision.stack.query)
    return value * width * setting.concurrent * setting.row.patches


def largest_in_prefill(model: Architecture, setting: Setting) -> int:
    """The largest tensor of the pass over the prompts: the inner one of an MLP, or what its adapter adds to it."""
    wide = _lora_value(setting) if setting.tuning == "lora" else setting.stored
    return wide * model.language.inner * setting.concurrent * setting.row.prompt


def input_bytes(model: Architecture, rows: int, setting: Setting) -> int:
    """Pixels of the images in float32, as processors hand them over, for ``rows`` rows."""
    if model.vision is None:
        return 0
    tower = model.vision
    return FLOAT * tower.channels * tower.frames * tower.patch**2 * setting.row.patches * rows


def _lora_value(setting: Setting) -> int:
    """Bytes of a number in an adapter: it works in float32 outside of autocast. Unsloth samples under autocast."""
    return setting.stored if samples_under_autocast(setting) else FLOAT


def samples_under_autocast(setting: Setting) -> bool:
    """Unsloth generates under autocast, transformers does not."""
    return setting.backend == "unsloth" and setting.mixed


def _cached_tokens(model: Architecture, setting: Setting) -> int:
    """Tokens of a row for which prefill has room in the cache, and a place in its masks."""
    return setting.row.prompt + (setting.answer_tokens if _static_cache(model, setting) else 0)


def _static_cache(model: Architecture, setting: Setting) -> bool:
    """Unsloth takes a static cache unless image tokens need a mask of their own (``unsloth_base_fast_generate``)."""
    return setting.backend == "unsloth" and not model.language.expanded
