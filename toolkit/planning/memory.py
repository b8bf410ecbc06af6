"""GPU memory of one stage at each moment that could be the peak, and settings that make the stage fit.

The formulas were checked with an allocation trace of the shipped recipes at their real sizes, not with a GPU
(tests/benchmarks/bench_memory.py has the limits).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from toolkit.planning import activations, generation, weights
from toolkit.planning.architecture import FLOAT, Architecture
from toolkit.planning.gpu import GIB, Gpu, usable_bytes
from toolkit.planning.stages import Setting, on_gpu

GB = 1e9
GPU_SIZES = (8, 12, 16, 24)
"""Nominal GB of the GPUs that every plan includes."""
CONTEXT = int(0.6 * GIB)
"""CUDA context, kernels and workspaces of libraries. This is an assumption: 0.3 to 0.8 GiB are usual."""
PIECES, GROWING = int(0.15 * GIB), 9 * 2**20
"""Bytes that torch's allocator holds in unusable pieces, such as half-filled segments of 2 and 20 MiB. The second
figure is for each layer whose cache grows step by step in segments that do not expand (trace)."""
BLOCKS, RIGID_BLOCKS = 2, 4
"""Largest blocks of a moment that are free between blocks in use (trace: up to 1.7). The second figure is for a
training pass in segments that do not expand (3.7)."""
IDLE_BLOCKS = 2.2
"""Largest blocks of the vision tower that prefill cannot reuse, in float32 (trace: up to 2.2)."""


UNPACKED = "grpo.packing = false, grpo.micro_batch = 1"
"""The change that gives each completion a row of its own. OOM recovery reaches the same passes by itself."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes by part at one moment of a stage."""

    name: str
    parts: Mapping[str, int]

    @property
    def allocated(self) -> int:
        """Return the peak of allocated bytes that torch would report."""
        return self.reserved - self.parts["fragmentation"]

    @property
    def reserved(self) -> int:
        """Return the peak of reserved bytes that torch would report, which includes fragmentation."""
        return sum(size for part, size in self.parts.items() if part != "context")

    @property
    def total(self) -> int:
        """Return the bytes that the GPU must have."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Estimate:
    """Moments of one stage."""

    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """Return the moment with the most bytes."""
        return max(self.moments, key=lambda moment: moment.total)


def estimate(model: Architecture, setting: Setting, usable: int | None = None) -> Estimate:
    """Return the GPU memory of a stage.

    An evaluation has moments of generation, SFT and DPO have the loss and the backward pass, and GRPO has all of them.

    Args:
        model: the architecture.
        setting: the stage.
        usable: bytes of the GPU that a program can use, from which Unsloth derives the slices of its SFT loss. None:
        unlimited.
    """
    always = _always(model, setting)
    moments = _generating(model, setting, always) if setting.concurrent else []
    if setting.trains:
        moments += _training(model, setting, always, usable)
    return Estimate(tuple(moments))


def _always(model: Architecture, setting: Setting) -> dict[str, int]:
    language, vision = weights.weight_bytes(model, setting)
    return {
        "weights": language,
        "vision_tower": vision,
        "adapter": weights.adapter_bytes(model, setting),
        "reference": weights.reference_bytes(model, setting),
        "optimizer": weights.optimizer_bytes(model, setting) if setting.trains else 0,
    }


def _training(model: Architecture, setting: Setting, always: Mapping[str, int], usable: int | None) -> list[Moment]:
    # GRPO keeps the pixel values of all completions of a step on the GPU and copies those of each micro-batch.
    rows = setting.rows + setting.concurrent
    fixed = {
        **always,
        "gradients": weights.gradient_bytes(model, setting),
        "activations": activations.saved_bytes(model, setting),
        "inputs": generation.input_bytes(model, rows, setting),
    }
    pieces = _pieces(model, setting)
    free = None if usable is None else usable - CONTEXT - sum(fixed.values())
    logits, layer = activations.logits_bytes(model, setting, free), activations.layer_bytes(model, setting)
    blocks = RIGID_BLOCKS if setting.backend == "hf" else BLOCKS
    # Slices have equal size and reuse their blocks, so only one block is unusable.
    stray_in_loss = max(
        blocks * activations.largest_logits(model, setting), activations.fused_slice_bytes(model, setting, free)
    )
    stray_in_backward = blocks * activations.largest_inner(model, setting)
    return [
        _moment("loss", {**fixed, "logits": logits}, pieces + stray_in_loss),
        _moment("backward pass", {**fixed, "layer": layer}, pieces + stray_in_backward),
    ]


def _generating(model: Architecture, setting: Setting, always: Mapping[str, int]) -> list[Moment]:
    """Return the moments of generation. The vision tower has finished before the first layer caches its keys."""
    fixed = {**always, "inputs": generation.input_bytes(model, setting.concurrent, setting)}
    patches, autocast = setting.concurrent * setting.row.patches, generation.samples_under_autocast(setting)
    copies = weights.autocast_copies(model, setting) if autocast else 0
    pieces = _pieces(model, setting)
    moments = []
    tower = generation.tower_bytes(model, setting, patches, autocast=autocast)
    if tower:
        images = tower + generation.embedding_bytes(model, setting)
        largest = generation.largest_in_tower(model, setting)
        moments.append(_moment("vision tower", {**fixed, "images": images}, pieces + BLOCKS * largest))
    prefill = {
        "kv_cache": generation.prompt_cache_bytes(model, setting),
        "prefill": copies + generation.prefill_bytes(model, setting) + generation.features_bytes(model, setting),
    }
    decoding = {
        "kv_cache": generation.kv_cache_bytes(model, setting),
        "decoding": copies + generation.decoding_bytes(model, setting),
        "sampling": generation.sampling_bytes(model, setting),
    }
    stray = _stray_in_prefill(model, setting, max(0, tower - prefill["kv_cache"]))
    return [
        *moments,
        _moment("prefill", {**fixed, **prefill}, pieces + stray),
        _moment("decoding", {**fixed, **decoding}, pieces + BLOCKS * decoding["decoding"]),
    ]


def _stray_in_prefill(model: Architecture, setting: Setting, idle: int) -> int:
    """Return the bytes of free blocks between blocks in use.

    ``idle``: bytes that the tower leaves and the cache does not use. They stay idle if their blocks are smaller than
    the tensors of prefill. In 16 bits, float32 tensors of the adapter alternate with tensors of half their size. In
    float32, all tensors have one size, and the largest blocks of the tower stay idle (trace).
    """
    largest, of_tower = (
        generation.largest_in_prefill(model, setting),
        generation.largest_in_tower(model, setting),
    )
    if setting.stored == FLOAT:
        return largest // 2 + int(IDLE_BLOCKS * of_tower)
    return BLOCKS * largest + (idle if setting.backend == "hf" and of_tower < largest // 2 else 0)


def _pieces(model: Architecture, setting: Setting) -> int:
    """Return the bytes of unusable pieces in torch's allocator. Unsloth lets segments expand."""
    grows = setting.concurrent and setting.backend == "hf"
    return PIECES + (GROWING * model.language.layers if grows else 0)


def _moment(name: str, parts: Mapping[str, int], fragmentation: int) -> Moment:
    """Return a moment.

    ``fragmentation``: small pieces, and free blocks of the size of the largest tensor between blocks in use, because
    tensors of different sizes alternate.
    """
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Memory estimate of a stage, and the changes to the recipe that make it fit. Empty: it fits. None: none is enough.

    Attributes:
        estimate: The estimate for the GPU of the plan.
        without_bf16: The estimate for a GPU without bfloat16 (T4, V100), on which unquantized parameters are float32.
        changes: Maps the nominal GB of a GPU to the changes.
        precision: The precision on a GPU. ``auto`` may be another precision on this machine.
        changes_here: The changes for the GPU of the plan.
    """

    estimate: Estimate
    without_bf16: Estimate
    changes: Mapping[int, tuple[str, ...] | None]
    precision: str
    changes_here: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, object]:
        """Return the entry of plan.json."""
        peak = self.estimate.peak
        return {
            "peak_gb": round(peak.total / GB, 3),
            "reserved_gb": round(peak.reserved / GB, 3),
            "precision": self.precision,
            "moment": peak.name,
            "peak_gb_without_bf16": round(self.without_bf16.peak.total / GB, 3),
            "moments": {moment.name: dict(moment.parts) for moment in self.estimate.moments},
            "fits": {
                str(size): {"fits": changes == (), "changes": None if changes is None else list(changes)}
                for size, changes in self.changes.items()
            },
        }


def stage_memory(model: Architecture, setting: Setting, gpu: Gpu | None, max_side: int) -> StageMemory:
    """Return the memory estimate of a stage for the plan's GPU, and the changes that make it fit each size of GPU."""
    usable = None if gpu is None else gpu.memory
    return StageMemory(
        estimate(model, setting, usable),
        estimate(model, on_gpu(setting, model, bf16=False), usable),
        {size: first_fit(model, setting, usable_bytes(size), max_side) for size in GPU_SIZES},
        setting.precision,
        None if usable is None else first_fit(model, setting, usable, max_side),
    )


Change = tuple[str, Setting]
"""A change to the recipe as text, and the resulting setting."""


def first_fit(model: Architecture, setting: Setting, usable: int, max_side: int) -> tuple[str, ...] | None:
    """Return the first change, or the first changes in order, with which a stage fits into ``usable`` bytes.

    Single changes are tried first. Changes that only cost time come first, then precision and image size, then those
    that affect what is learned.

    Returns:
        Empty if the stage fits as it is. None if no known change is enough.
    """

    def fits(one: Setting) -> bool:
        return estimate(model, one, usable).peak.total <= usable

    if fits(setting):
        return ()
    for changes in _CHANGES:
        for text, changed in changes(model, setting, max_side):
            if fits(changed):
                return (text,)
    texts: tuple[str, ...] = ()
    for changes in _CHANGES:
        for text, changed in changes(model, setting, max_side):
            if estimate(model, changed, usable).peak.total < estimate(model, setting, usable).peak.total:
                texts, setting = (*texts, text), changed
                break
        if fits(setting):
            return texts
    return None


def _micro_batch(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    key = "grpo.micro_batch" if setting.stage == "grpo" else f"{setting.stage}.batch_size"
    each = 2 if setting.stage == "dpo" else 1  # rows of a pair
    batch = setting.rows // each if setting.trains else 1
    size = batch
    while size > 1:
        size = max(d for d in range(1, size) if batch % d == 0)
        same = "" if setting.stage == "grpo" else f" (and {batch // size} times {setting.stage}.accumulation)"
        yield f"{key} = {size}{same}", replace(setting, rows=each * size)


def _packing(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.packed > 1:
        yield UNPACKED, replace(setting, packed=1, rows=1)


def _checkpointing(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.trains and not setting.checkpointing:
        yield f"{setting.stage}.gradient_checkpointing = true", replace(setting, checkpointing=True)


def _optimizer(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.trains and "8bit" not in setting.optimizer:
        name = "paged_adamw_8bit"
        yield f'{setting.stage}.optimizer = "{name}"', replace(setting, optimizer=name)


def _evaluation_batch(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.stage == "evaluate":
        count = setting.concurrent
        while count > 1:
            count //= 2
            yield f"evaluate.batch_size = {count}", replace(setting, concurrent=count)


def _precision(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.tuning == "lora" and setting.precision != "4bit":
        yield 'model.precision = "4bit"', replace(setting, precision="4bit")
    elif setting.tuning == "full":
        yield (
            'model.tuning = "lora", model.precision = "4bit"',
            replace(setting, tuning="lora", precision="4bit", reference="none"),
        )


def _image_sizes(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    """Yield smaller image sizes, below the longest side in the row, because a higher limit would change nothing."""
    tower, row = model.vision, setting.row
    if tower is None or tower.side is not None or not row.sizes:
        return
    longest = min(max_side, max(map(max, row.sizes)))
    for fraction in (0.75, 0.5, 0.375):
        side = int(longest * fraction) // 28 * 28
        if side >= 224:
            smaller = row.limited(side, tower.patch * tower.merge, tower.merge)
            yield f"images.max_side = {side}", replace(setting, row=smaller)


def _answers(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    tokens = setting.answer_tokens // 2
    if setting.stage == "grpo" and tokens >= 64:
        yield f"grpo.max_completion_tokens = {tokens}", replace(setting, answer_tokens=tokens)


def _completions(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.stage == "grpo":
        for part in (2, 4):
            count, rest = divmod(setting.concurrent, part)
            if rest == 0 and count >= 2 and count % setting.rows == 0:  # A step must have whole micro-batches.
                yield f"grpo.prompts_per_step x grpo.generations = {count}", replace(setting, concurrent=count)


def _rank(model: Architecture, setting: Setting, max_side: int) -> Iterator[Change]:
    if setting.trains and setting.tuning == "lora" and setting.r > 8:
        yield "lora.r = 8", replace(setting, r=8)


_CHANGES: tuple[Callable[[Architecture, Setting, int], Iterator[Change]], ...] = (
    _micro_batch,
    _packing,
    _checkpointing,
    _evaluation_batch,
    _optimizer,
    _precision,
    _image_sizes,
    _completions,
    _answers,
    _rank,
)
