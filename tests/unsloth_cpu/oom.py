"""Out-of-memory errors on purpose, raised from hooks of torch: UNSLOTH_CPU_OOM=forward:3,rollout:1.

Each entry is a place and the number of its call, from 1, that fails once:

- forward: an outermost forward pass with gradients. Raised before it computes.
- backward: an outermost backward pass. Raised after it, so that gradients are left over.
- optimizer: a step of an optimizer. Raised after it, so that parameters have moved.
- rollout, evaluation: a call of ``generate`` inside and outside of a trainer's step. Raised in its first forward pass.
"""

import os
import sys
from collections import Counter
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

VARIABLE = "UNSLOTH_CPU_OOM"
PLACES = ("forward", "backward", "optimizer", "rollout", "evaluation")


class _Injector:
    """Counts the calls of each place and raises at the wanted ones."""

    def __init__(self, wanted: dict[str, set[int]]) -> None:
        self.wanted = wanted
        self.seen: Counter[str] = Counter()
        self.depth = 0
        self.generating: Any = None

    def count(self, place: str) -> None:
        self.seen[place] += 1
        if self.seen[place] in self.wanted.get(place, ()):
            sys.stderr.write(f"injected: out of memory in {place} {self.seen[place]}\n")
            raise torch.OutOfMemoryError(f"CUDA out of memory (injected in {place} {self.seen[place]})")

    def enter(self, module: Any, inputs: Any) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        if torch.is_grad_enabled():
            self.count("forward")
            return
        generate, training = _find_generate()
        if generate is not None and generate is not self.generating:
            self.generating = generate
            self.count("rollout" if training else "evaluation")

    def leave(self, module: Any, inputs: Any, output: Any) -> None:
        self.depth -= 1


def _find_generate() -> tuple[Any, bool]:
    """Return the outermost frame of a ``generate`` on the stack, or None, and whether a trainer's step is below it."""
    frame: FrameType | None = sys._getframe(2)
    generate, training = None, False
    while frame is not None:
        name = frame.f_code.co_name
        if name == "generate":
            generate = frame
        training = training or name == "training_step"
        frame = frame.f_back
    return generate, training


def inject() -> None:
    """Raise the errors that the environment variable lists, until the process ends.

    Raises:
        ValueError: A place is unknown.
    """
    wanted: dict[str, set[int]] = {}
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        place, _, number = entry.partition(":")
        if place not in PLACES:
            raise ValueError(f"{VARIABLE}: {place!r} must be one of {', '.join(PLACES)}")
        wanted.setdefault(place, set()).add(int(number))
    if not wanted:
        return
    injector, backward, depth = _Injector(wanted), torch.autograd.backward, 0

    def outermost(*args: Any, **options: Any) -> None:
        nonlocal depth  # reentrant checkpointing calls it inside of itself
        depth += 1
        try:
            backward(*args, **options)
        finally:
            depth -= 1
        if not depth:
            injector.count("backward")

    torch.autograd.backward = outermost
    register_module_forward_pre_hook(injector.enter)
    register_module_forward_hook(injector.leave, always_call=True)
    register_optimizer_step_post_hook(lambda optimizer, args, options: injector.count("optimizer"))
