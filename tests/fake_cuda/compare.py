"""Comparison of a stage's planned and traced GPU memory, with limits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.fake_cuda.trace import Traced
from toolkit.planning.architecture import Architecture
from toolkit.planning.memory import estimate
from toolkit.planning.stages import Setting

GIB = 2**30
PARTS = 0.001
"""Permitted relative difference of parameters, adapter, optimizer state and KV cache."""
ALLOCATED, RESERVED = 0.08, 0.15
"""Permitted relative excess of a planned peak over the traced one. It must never be below."""

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "rollout": ("vision tower", "prefill", "decoding"),
    "training pass": ("loss", "backward pass"),
}
"""Maps traced moments to the plan's moments. The largest of these is compared."""

NOT_TRACED: Mapping[str, tuple[str, ...]] = {
    "hf": (),
    "unsloth": ("offloaded checkpointing: checkpoints count as kept on the GPU", "Triton kernels and torch.compile"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Planned and traced bytes. ``broken`` lists the violated limits."""

    traced: Traced
    parts: Mapping[str, int]
    moments: Mapping[str, int]
    reserved: int
    broken: tuple[str, ...]
    not_traced: tuple[str, ...]

    def pairs(self) -> Iterator[tuple[float, float]]:
        """Traced and planned bytes of the peaks: rollout, training pass, reserved. 0: no such moment."""
        for name in MOMENTS:
            yield self.traced.moments.get(name, 0), self.moments.get(name, 0)
        yield self.traced.reserved, self.reserved

    def lines(self) -> Iterator[str]:
        """Return each value as text."""
        for name, mine in (
            *self.traced.parts.items(),
            *self.traced.moments.items(),
            ("reserved", self.traced.reserved),
        ):
            plan = {**self.parts, **self.moments, "reserved": self.reserved}[name]
            if mine or plan:
                above = plan / max(1, mine) - 1
                yield f"{name:14} traced {mine / GIB:8.4f}   plan {plan / GIB:8.4f} GiB   {above:+.2%}"
        yield f"fragmentation: {self.traced.reserved / self.traced.allocated - 1:.1%} of what is allocated"
        yield from (f"not traced: {text}" for text in self.not_traced)


def compare(model: Architecture, setting: Setting, usable: int, traced: Traced) -> Comparison:
    """Compare the plan of a stage with its trace."""
    found = estimate(model, setting, usable)
    allocated = {one.name: one.allocated for one in found.moments}
    always = found.moments[0].parts
    parts = {name: always[name] for name in ("weights", "vision_tower", "adapter", "optimizer")}
    parts["kv_cache"] = next((one.parts["kv_cache"] for one in found.moments if one.name == "decoding"), 0)
    moments = {
        name: max((allocated[one] for one in names if one in allocated), default=0) for name, names in MOMENTS.items()
    }
    reserved = max(one.reserved for one in found.moments)
    broken = [
        f"{name}: planned {parts[name]} bytes, traced {mine}"
        for name, mine in traced.parts.items()
        if abs(parts[name] - mine) > PARTS * mine
    ]
    peaks = [(name, moments[name], mine, ALLOCATED) for name, mine in traced.moments.items()]
    for name, plan, mine, limit in (*peaks, ("reserved", reserved, traced.reserved, RESERVED)):
        if not mine <= plan <= (1 + limit) * mine:
            broken.append(f"{name}: planned {plan / GIB:.3f} GiB, traced {mine / GIB:.3f} ({plan / mine - 1:+.1%})")
    return Comparison(traced, parts, moments, reserved, tuple(broken), NOT_TRACED[setting.backend])
