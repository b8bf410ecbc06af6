"""Script of a probe: imports one library in its own process and writes what it finds.

The script is run by its path and imports nothing of this package, so a library that crashes or hangs affects only this
process. ``probe_script.py RESULT NAME SECONDS [MODEL]`` writes RESULT, a JSON object that ``probes.Report`` describes.
Output of the library goes to the output of this process.
"""

import faulthandler
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MODULES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "transformers": ("transformers:AutoModelForImageTextToText", "transformers:AutoProcessor"),
    "trl": ("trl:SFTTrainer", "trl:GRPOTrainer"),
    "peft": ("peft:get_peft_model",),
    "accelerate": ("accelerate:Accelerator",),
    "datasets": ("datasets:Dataset",),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes.cextension"),
    "unsloth": ("unsloth:FastVisionModel",),
    "xformers": ("xformers", "xformers.ops"),
    "triton": ("triton",),
    "opencv": ("cv2:imdecode",),
    "vllm": ("vllm:LLM",),
    "hub": ("huggingface_hub", "huggingface_hub.constants"),
}
"""Probe -> modules and attributes. Accessing an attribute imports libraries that load lazily."""

REQUEST_SECONDS = 5.0
"""Timeout of a request to the Hub."""


def main(result: str, name: str, seconds: str, model: str = "") -> None:
    """Import, inspect, and exit at once, because the library's own shutdown is not checked."""
    report: dict[str, object] = {"state": "importing"}

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        causes = list(_causes(error))
        root = causes[-1]
        report["error"] = "\n".join(f"{type(one).__name__}: {one}" for one in causes)
        report["missing"] = root.name if isinstance(root, ModuleNotFoundError) else None
        report["where"] = _last_line(root.__traceback__)
        _write(result, report)

    sys.excepthook = fail
    faulthandler.enable()
    # Dump before the time limit ends the process.
    faulthandler.dump_traceback_later(max(float(seconds) - 5, float(seconds) / 2))
    _write(result, report)
    for wanted in MODULES[name]:
        module, _, attribute = wanted.partition(":")
        loaded = importlib.import_module(module)
        if attribute:
            getattr(loaded, attribute)
    report["state"] = "inspecting"
    _write(result, report)
    if name == "hub":
        report["hub"] = inspect_hub(model)
    elif name in INSPECTIONS:
        field, inspect = INSPECTIONS[name]
        report[field] = inspect()
    report["state"] = "done"
    _write(result, report)
    os._exit(0)


def inspect_torch() -> dict[str, object]:
    """Return the build of torch, and name, capability, bytes of memory, bfloat16 and a kernel test for each CUDA
    device."""
    torch = sys.modules["torch"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "warnings": [str(one.message) for one in caught],
        "devices": [_device(torch, index) for index in range(count)],
    }


def _device(torch: Any, index: int) -> dict[str, object]:
    known = torch.cuda.get_device_properties(index)
    found: dict[str, object] = {
        "name": known.name,
        "capability": [known.major, known.minor],
        "total": known.total_memory,
    }
    try:
        with torch.cuda.device(index):
            found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
            found["free"] = torch.cuda.mem_get_info(index)[0]
            torch.ones(2, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:  # The build has no kernels for the device, or the device is lost or full.
        found["error"] = str(error)
    return found


def inspect_xformers() -> dict[str, object]:
    """Return whether the compiled extension is loaded, and, with a GPU, whether attention runs."""
    problem = sys.modules["xformers._cpp_lib"]._cpp_library_load_exception
    if problem is not None:
        return {"error": str(problem)}
    torch = sys.modules["torch"]
    if not torch.cuda.is_available():
        return {}
    one = torch.zeros(1, 16, 1, 64, dtype=torch.float16, device="cuda")
    try:
        sys.modules["xformers.ops"].memory_efficient_attention(one, one, one).sum().item()
    except (RuntimeError, ValueError) as error:  # NotImplementedError: there is no kernel for this GPU.
        return {"error": str(error)}
    return {"cuda": True}


def inspect_bitsandbytes() -> dict[str, object]:
    """Return which native library is loaded. A stub keeps the error of a library that failed to load."""
    native = sys.modules["bitsandbytes.cextension"].lib
    return {"cuda": bool(native.compiled_with_cuda), "error": str(vars(native).get("error_msg") or "")}


def inspect_hub(model: str) -> dict[str, object]:
    """Return whether ``model`` is cached with all weights, and, unless offline, whether its files are accessible."""
    hub = sys.modules["huggingface_hub"]
    offline = bool(hub.constants.HF_HUB_OFFLINE)
    found: dict[str, object] = {"offline": offline, "cached": bool(model) and _is_cached(hub, model)}
    if model and not offline:
        import httpx

        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(model, "config.json"), timeout=REQUEST_SECONDS)
        except (OSError, ValueError, httpx.HTTPError) as error:
            found["error"] = str(error)
            found["kinds"] = [kind.__name__ for kind in type(error).__mro__]
    return found


def _is_cached(hub: Any, model: str) -> bool:
    def cached(file: str) -> Path | None:
        path = hub.try_to_load_from_cache(model, file)
        return Path(path) if isinstance(path, str) else None

    try:
        index = cached("model.safetensors.index.json")
        if cached("config.json") is None or index is None:
            return cached("config.json") is not None and cached("model.safetensors") is not None
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError):  # The name is invalid, or the cache is corrupt.
        return False
    return all(cached(part) is not None for part in parts)


INSPECTIONS: Mapping[str, tuple[str, Callable[[], dict[str, object]]]] = {
    "torch": ("torch", inspect_torch),
    "xformers": ("extension", inspect_xformers),
    "bitsandbytes": ("extension", inspect_bitsandbytes),
}
"""Probe -> field of the report, and the function that fills it."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes. The root cause is last."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _last_line(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _write(result: str, report: Mapping[str, Any]) -> None:
    partial = Path(f"{result}.partial")
    partial.write_text(json.dumps(report, default=str), encoding="utf-8")
    partial.replace(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
