"""The memory of one stage: its parts at each moment that could be the peak, and the peak.

Formulas, checked against an allocation trace of the shipped recipes at their real sizes, not against a GPU
(tests/benchmarks/bench_memory.py has the limits).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.planning.architecture import Architecture
from toolkit.planning.memory import activations, rollout, weights
from toolkit.planning.memory.setting import Setting
from toolkit.planning.memory.weights import FLOAT

GIB = 2**30
CONTEXT = int(0.6 * GIB)
"""CUDA's context, its kernels and the libraries' workspaces. An assumption: 0.3 to 0.8 GiB are usual."""
PIECES, GROWING = int(0.15 * GIB), 9 * 2**20
"""What torch's allocator holds in small pieces of no use, such as half-filled segments of 2 and 20 MiB; and what each
layer adds whose cache grows step by step in segments that do not expand (trace)."""
BLOCKS, RIGID_BLOCKS = 2, 4
"""Largest blocks of a moment that lie in pieces between others (trace: up to 1.7), and of a training pass in segments
that do not expand (3.7)."""
IDLE_BLOCKS = 2.2
"""Largest blocks of the vision tower's pass that prefill has no use for, in float32 (trace: up to 2.2)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes by part at one moment of a stage."""

    name: str
    parts: Mapping[str, int]

    @property
    def allocated(self) -> int:
        """What torch's tensors take: what its peak of allocated memory would be."""
        return self.reserved - self.parts["fragmentation"]

    @property
    def reserved(self) -> int:
        """What torch holds, fragmentation included: what its peak of reserved memory would be."""
        return sum(size for part, size in self.parts.items() if part != "context")

    @property
    def total(self) -> int:
        """What the card must have."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Estimate:
    """One stage's moments."""

    stage: str
    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)


def estimate(model: Architecture, setting: Setting, usable: int | None = None) -> Estimate:
    """Return a stage's memory: of an evaluation while it generates, of SFT at the loss and in the backward pass, of
    GRPO in all of these.

    Args:
        model: the architecture.
        setting: the stage.
        usable: bytes of the GPU that a program can have, which Unsloth's SFT loss sizes itself by. None: many.
    """
    always = _always(model, setting)
    moments = _generating(model, setting, always) if setting.concurrent else []
    if setting.trains:
        moments += _training(model, setting, always, usable)
    return Estimate(setting.stage, tuple(moments))


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
    # GRPO keeps the pixels of all completions of a step on the GPU, and copies those of a micro-batch.
    rows = setting.rows + setting.concurrent
    kept = {
        **always,
        "gradients": weights.gradient_bytes(model, setting),
        "activations": activations.kept_bytes(model, setting),
        "inputs": rollout.input_bytes(model, rows, setting),
    }
    pieces = _pieces(model, setting)
    free = None if usable is None else usable - CONTEXT - sum(kept.values())
    logits, layer = activations.logits_bytes(model, setting, free), activations.layer_bytes(model, setting)
    blocks = RIGID_BLOCKS if setting.backend == "hf" else BLOCKS
    # Slices of equal size follow each other: one of their blocks lies between others.
    stray = max(
        blocks * activations.largest_logits(model, setting), activations.fused_slice_bytes(model, setting, free)
    )
    return [
        _moment("loss", {**kept, "logits": logits}, pieces + stray),
        _moment("backward pass", {**kept, "layer": layer}, pieces + blocks * activations.largest_inner(model, setting)),
    ]


def _generating(model: Architecture, setting: Setting, always: Mapping[str, int]) -> list[Moment]:
    """The vision tower's forward pass is over before the first layer caches its keys."""
    kept = {**always, "inputs": rollout.input_bytes(model, setting.concurrent, setting)}
    patches, autocast = setting.concurrent * setting.row.patches, rollout.samples_under_autocast(setting)
    copies = weights.autocast_copies(model, setting) if autocast else 0
    pieces = _pieces(model, setting)
    moments = []
    tower = rollout.tower_bytes(model, setting, patches, autocast=autocast)
    if tower:
        images = tower + rollout.embedding_bytes(model, setting)
        largest = rollout.largest_in_tower(model, setting)
        moments.append(_moment("vision tower", {**kept, "images": images}, pieces + BLOCKS * largest))
    prefill = {
        "kv_cache": rollout.prompt_cache_bytes(model, setting),
        "prefill": copies + rollout.prefill_bytes(model, setting) + rollout.features_bytes(model, setting),
    }
    decoding = {
        "kv_cache": rollout.kv_cache_bytes(model, setting),
        "decoding": copies + rollout.decoding_bytes(model, setting),
        "sampling": rollout.sampling_bytes(model, setting),
    }
    stray = _stray_in_prefill(model, setting, max(0, tower - prefill["kv_cache"]))
    return [
        *moments,
        _moment("prefill", {**kept, **prefill}, pieces + stray),
        _moment("decoding", {**kept, **decoding}, pieces + BLOCKS * decoding["decoding"]),
    ]


def _stray_in_prefill(model: Architecture, setting: Setting, idle: int) -> int:
    """Blocks that lie in pieces between others. ``idle``: what the tower leaves and the cache does not take. It lies
    idle if its blocks are smaller than prefill's tensors. In 16 bits the adapter's float32 takes turns with tensors of
    half its size. In float32 all have one size, and the tower's largest blocks lie idle (trace).
    """
    largest, of_tower = rollout.largest_in_prefill(model, setting), rollout.largest_in_tower(model, setting)
    if setting.stored == FLOAT:
        return largest // 2 + int(IDLE_BLOCKS * of_tower)
    return BLOCKS * largest + (idle if setting.backend == "hf" and of_tower < largest // 2 else 0)


def _pieces(model: Architecture, setting: Setting) -> int:
    """Small pieces that torch's allocator cannot hand out. Unsloth has its segments expand."""
    grows = setting.concurrent and setting.backend == "hf"
    return PIECES + (GROWING * model.language.layers if grows else 0)


def _moment(name: str, parts: Mapping[str, int], fragmentation: int) -> Moment:
    """``fragmentation``: small pieces, and blocks of the size of the moment's largest one that lie between others,
    since tensors of different sizes take turns.
    """
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})
