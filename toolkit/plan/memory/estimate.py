"""The memory of one stage: its parts at each moment that could be the peak, and the peak.

Formulas, checked against an allocation trace of the shipped recipes at their real sizes, not against a GPU
(tests/benchmarks/bench_memory.py has the limits).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.plan.architecture import Architecture
from toolkit.plan.memory import activations, rollout, weights
from toolkit.plan.memory.setting import Setting

GIB = 2**30
CONTEXT = int(0.6 * GIB)
"""CUDA's context, its kernels and the libraries' workspaces. An assumption: 0.3 to 0.8 GiB are usual."""
PIECES, ROLLOUT_PIECES = int(0.15 * GIB), int(0.45 * GIB)
"""What torch's allocator holds in small pieces of no use, such as half-filled segments of 2 and 20 MiB: in a stage that
only trains, and in one that generates, whose cache grows (trace)."""


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
    always, pieces = _always(model, setting), _fragmentation(model, setting)
    moments = []
    if setting.concurrent:
        moments += [_moment(name, always | parts, pieces) for name, parts in _generating(model, setting).items()]
    if setting.trains:
        training = always | _training(model, setting)
        free = None if usable is None else usable - CONTEXT - sum(training.values())
        logits = activations.logits_bytes(model, setting, free)
        moments.append(_moment("loss", training | {"logits": logits}, pieces))
        layer = activations.layer_bytes(model, setting)
        moments.append(_moment("backward pass", training | {"layer": layer}, pieces))
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


def _training(model: Architecture, setting: Setting) -> dict[str, int]:
    rows = setting.concurrent or setting.rows  # GRPO keeps the pixels of all completions of a step on the GPU
    return {
        "gradients": weights.gradient_bytes(model, setting),
        "activations": activations.kept_bytes(model, setting),
        "inputs": rollout.input_bytes(model, rows, setting),
    }


def _generating(model: Architecture, setting: Setting) -> dict[str, dict[str, int]]:
    """Parts by moment. The vision tower's forward pass is over before the first layer caches its keys."""
    inputs = {"inputs": rollout.input_bytes(model, setting.concurrent, setting)}
    prompts = rollout.prompt_cache_bytes(model, setting)
    found = {
        "prefill": {"kv_cache": prompts, "prefill": rollout.prefill_bytes(model, setting)},
        "decoding": {
            "kv_cache": rollout.kv_cache_bytes(model, setting),
            "decoding": rollout.decoding_bytes(model, setting),
            "sampling": rollout.sampling_bytes(model, setting),
        },
    }
    patches, autocast = setting.concurrent * setting.row.patches, rollout.samples_under_autocast(setting)
    if images := rollout.tower_bytes(model, setting, patches, autocast=autocast):
        found = {"vision tower": {"images": images}, **found}
    return {name: inputs | parts for name, parts in found.items()}


def _moment(name: str, parts: dict[str, int], fragmentation: int) -> Moment:
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})


def _fragmentation(model: Architecture, setting: Setting) -> int:
    """What torch's allocator holds and cannot hand out: two blocks of the largest size and small pieces (trace).

    A segment is never joined with another one. So tensors of one phase leave segments that those of the next phase do
    not fit into, and the largest of them matter: of the tower, of prefill, or of the logits.
    """
    pieces = ROLLOUT_PIECES if setting.concurrent else PIECES
    return pieces + 2 * max(rollout.largest_block(model, setting), activations.largest_block(model, setting))
