"""The memory of one stage: its parts at each moment that could be the peak, and the peak.

An estimate from formulas. It was never compared with a GPU; its activations were compared with what torch keeps and
allocates on a CPU for small models of the same architectures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.plan.architecture import Architecture
from toolkit.plan.memory import activations, rollout, weights
from toolkit.plan.memory.setting import Setting

GIB = 2**30
CONTEXT = int(0.6 * GIB)
"""CUDA's context, its kernels and the libraries' workspaces. An assumption: 0.3 to 0.8 GiB are usual."""
FRAGMENTATION = 0.05
"""Share of torch's memory that its allocator holds in pieces of no use. An assumption."""


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
    """The stage's memory: of an evaluation while answers are written, of SFT at the loss and in the backward pass, of
    GRPO in all three.
    """
    moments = []
    if setting.concurrent:
        moments.append(_moment("writing answers", _always(model, setting) | _writing(model, setting)))
    if setting.trains:
        training = _always(model, setting) | _training(model, setting)
        logits = activations.sft_logits_bytes if setting.stage == "sft" else activations.grpo_logits_bytes
        moments.append(_moment("loss", training | {"logits": logits(model, setting)}))
        moments.append(_moment("backward pass", training | {"layer": activations.layer_bytes(model, setting)}))
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
    rows = setting.concurrent or setting.rows  # GRPO keeps the pixels of all completions of a step on the card
    return {
        "gradients": weights.gradient_bytes(model, setting),
        "activations": activations.kept_bytes(model, setting),
        "inputs": rollout.input_bytes(model, rows, setting),
    }


def _writing(model: Architecture, setting: Setting) -> dict[str, int]:
    return {
        "kv_cache": max(rollout.kv_cache_bytes(model, setting), rollout.prompt_cache_bytes(model, setting)),
        "prefill": rollout.prefill_bytes(model, setting),
        "sampling": rollout.sampling_bytes(model, setting),
        "inputs": rollout.input_bytes(model, setting.concurrent, setting),
    }


def _moment(name: str, parts: dict[str, int]) -> Moment:
    fragmentation = int(FRAGMENTATION * sum(parts.values()))
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})
