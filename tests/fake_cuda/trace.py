"""Tracing of one stage of one model in a separate process."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fake_cuda.allocator import Event, Usage, replay
from tests.fake_cuda.device import build_stubs
from toolkit.planning.stages import Setting
from toolkit.planning.tokens import RowSize

LIMIT_S = 900
"""Timeout of a trace in seconds."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to trace: the fields of a model's config.json, a stage, and the GPU memory that a program can have."""

    fields: Mapping[str, Any]
    setting: Setting
    usable: int
    top: int = 0
    """Number of the largest storages per peak to report."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Bytes of a traced stage."""

    parts: Mapping[str, int]
    """Allocated bytes for weights, vision_tower, adapter, optimizer, kv_cache."""
    moments: Mapping[str, int]
    """Peak of allocated bytes per moment: rollout, training pass."""
    reserved: int
    """Peak of the replay of torch's allocator."""
    allocated: int
    """Peak of the bytes that it had handed out."""
    guessed: Mapping[str, int]
    """Number of scalars that code read although the trace did not know them, by phase."""
    seconds: float
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Maps phases to kernels, bytes and FLOPs. A decode phase has one step."""
    top: Mapping[str, Sequence[str]] = field(default_factory=dict)


def trace(spec: Spec) -> Traced:
    """Trace in a subprocess with the simulated device.

    Raises:
        RuntimeError: the traced code failed. The message has the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="fake-cuda-") as place:
        folder = Path(place)
        (folder / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)), encoding="utf-8")
        command = [sys.executable, "-m", "tests.fake_cuda", str(folder / "spec.json"), str(folder / "traced.json")]
        done = subprocess.run(
            command, env=dict(build_stubs(folder)), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the trace failed ({done.returncode}):\n{done.stderr[-4000:]}")
        return Traced(**json.loads((folder / "traced.json").read_text(encoding="utf-8")))


def read_spec(file: Path) -> Spec:
    """Return the Spec that ``trace`` wrote."""
    written = json.loads(file.read_text(encoding="utf-8"))
    setting = written["setting"]
    row = {**setting["row"], "sizes": tuple(tuple(one) for one in setting["row"]["sizes"])}
    return Spec(**{**written, "setting": Setting(**{**setting, "row": RowSize(**row)})})


def run(spec: Spec) -> Traced:
    """Trace in this process, which must have been started with ``build_stubs``' environment."""
    started = time.monotonic()
    import gc

    from tests.fake_cuda.device import patch_torch, pretend_devices

    patch_torch(bf16=spec.setting.bf16)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tests.fake_cuda.log import AllocationLog
    from tests.fake_cuda.losses import loss_of
    from tests.fake_cuda.model import build, tower_bytes
    from tests.fake_cuda.stage import Stage

    setting, log = spec.setting, AllocationLog()
    # The engine's thread would release what a pass has saved as soon as it gets Python's lock, some operations later.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autograd.set_multithreading_enabled(False):
        pretend_devices(64)
        with log:
            model = build(spec.fields, setting, log)
            gc.collect()
            parts = {
                "weights": log.alive("weights"),
                "adapter": log.alive("adapter"),
                "vision_tower": tower_bytes(model),
            }
            parts["weights"] -= parts["vision_tower"]
            stage = Stage(model, setting, log)
            stage.usable = spec.usable
            stage.run(loss_of(setting))
    pretend_devices(0)
    parts["optimizer"] = sum(one.nbytes for one in stage.state)
    parts["kv_cache"] = stage.cache_bytes
    return _read(spec, log, parts, started)


def _read(spec: Spec, log: Any, parts: Mapping[str, int], started: float) -> Traced:
    from tests.fake_cuda.growth import FAR, NEAR
    from tests.fake_cuda.log import peak

    names = {"rollout": ("prefill", *NEAR, *FAR), "training pass": ("loss", "backward")}
    moments: dict[str, int] = {}
    top: dict[str, list[str]] = {}
    for moment, phases in names.items():
        most, alive = peak(log.events, *phases)
        if most:
            moments[moment] = most
            groups: Counter[str] = Counter()
            for one in alive.values():
                groups[f"{one.phase}: {one.operation} {one.shape} {one.dtype}"] += one.size
            top[moment] = [f"{size / 2**30:.3f} GiB  {name}" for name, size in groups.most_common(spec.top)]
    usage = _replayed(spec.setting, log.events)
    counts = {phase: dataclasses.asdict(one) for phase, one in log.counts.items()}
    seconds = round(time.monotonic() - started, 1)
    return Traced(parts, moments, usage.reserved, usage.allocated, dict(log.guessed), seconds, counts, top)


def _replayed(setting: Setting, logged: Sequence[tuple[bool, Any]]) -> Usage:
    """Replay the allocator after loading, with every decode step of each rollout."""
    from tests.fake_cuda.growth import with_every_step

    start = next(index for index, (_, one) in enumerate(logged) if one.phase not in ("weights", "adapter"))
    loaded: dict[int, Event] = {}
    for came, one in logged[:start]:
        if came:
            loaded[one.number] = Event(one.number, one.size)
        else:
            loaded.pop(one.number, None)
    events = [*loaded.values(), *with_every_step(logged[start:], setting.answer_tokens)]
    return replay(events, expandable=setting.backend == "unsloth")
