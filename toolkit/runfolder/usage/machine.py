"""Facts and load of the machine, from the operating system and from torch if it is already loaded."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

GIGABYTE = 1e9


class _Peak:
    """Highest peak before ``begin_peak`` reset torch's own, which has only one."""

    before = 0


_peak = _Peak()


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return CPU model, cores, RAM, and the disk of ``folder``. Names of machine and user are left out."""
    disk = shutil.disk_usage(folder)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gb": _memory(),
        "disk_gb": round(disk.total / GIGABYTE),
        "disk_free_gb": round(disk.free / GIGABYTE),
    }


def describe_gpus() -> dict[str, Any]:
    """Return names and memory of the GPUs that this process uses, and the CUDA version. Empty: no GPU is in use."""
    cuda = _cuda()
    if cuda is None:
        return {}
    found = [cuda.get_device_properties(device) for device in used_gpus()]
    return {
        "gpus": [{"name": one.name, "memory_gb": round(one.total_memory / GIGABYTE, 1)} for one in found],
        "cuda": sys.modules["torch"].version.cuda,
    }


def used_gpus() -> list[int]:
    """Return the CUDA devices on which this process holds memory, or the current one if CUDA is initialized."""
    cuda = _cuda()
    if cuda is None:
        return []
    holding = [device for device in range(cuda.device_count()) if cuda.max_memory_reserved(device)]
    return holding or [cuda.current_device()]


def peak_gpu_memory() -> int | None:
    """Return the most bytes that torch reserved on one GPU since ``reset_peaks``."""
    now = gpu_peaks()["peak_reserved_bytes"]
    return None if now is None else max(now, _peak.before)


def gpu_peaks() -> dict[str, int | None]:
    """Return the most allocated and the most reserved bytes of one GPU since ``begin_peak``. None: no GPU."""
    cuda = _cuda()
    if cuda is None:
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}
    return {
        "peak_allocated_bytes": max(cuda.max_memory_allocated(device) for device in used_gpus()),
        "peak_reserved_bytes": max(cuda.max_memory_reserved(device) for device in used_gpus()),
    }


def begin_peak() -> None:
    """Restart the peaks of ``gpu_peaks``. ``peak_gpu_memory`` keeps earlier peaks."""
    _peak.before = peak_gpu_memory() or 0
    _reset_peaks()


def reset_peaks() -> None:
    """Restart all peaks of GPU memory."""
    _peak.before = 0
    _reset_peaks()


def _reset_peaks() -> None:
    cuda = _cuda()
    if cuda is not None:
        for device in used_gpus():
            cuda.reset_peak_memory_stats(device)


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes. None: the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cuda() -> Any:
    """Return torch.cuda if this process uses it. Loading torch or CUDA for a report would take seconds."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # The attribute is missing while torch is being imported.
    return cuda if cuda is not None and getattr(cuda, "is_initialized", bool)() else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE, 1)
