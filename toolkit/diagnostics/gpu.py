"""GPUs: driver, visibility to torch, compute capability, memory and bfloat16."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.diagnostics.finding import Finding, State
from toolkit.diagnostics.probes import Outcome

GIB = 2**30
ENOUGH = 14.5
"""GiB of a GPU with nominal 16 GB (a T4 has 14.6)."""
FREE_FRACTION = 0.8
"""Fraction of GPU memory that must be free. Otherwise another process uses it."""
WAIT = 20.0
"""Seconds until nvidia-smi is given up, which hangs if the driver does."""
NO_GPU = "Recipes of the tiny model run. A 4B model needs one NVIDIA GPU with 16 to 24 GB; Kaggle and Colab lend one."


@dataclass(frozen=True, slots=True)
class Driver:
    """Facts from the driver, without torch."""

    version: str | None
    gpus: Sequence[str] = ()
    problem: str = ""


def query_driver() -> Driver:
    """Query nvidia-smi, or read the file of the kernel module."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WAIT, check=False)
    except FileNotFoundError:
        return Driver(_kernel_module())
    except subprocess.TimeoutExpired:
        return Driver(_kernel_module(), problem=f"nvidia-smi did not answer within {WAIT:.0f} s")
    except OSError as error:
        return Driver(_kernel_module(), problem=f"nvidia-smi cannot be run: {error.strerror}")
    rows = [line.split(",", 1) for line in done.stdout.splitlines() if "," in line]
    if done.returncode or not rows:
        message = " ".join((done.stdout + done.stderr).split())[:200]
        return Driver(_kernel_module(), problem=f"nvidia-smi fails: {message or f'exit code {done.returncode}'}")
    return Driver(rows[0][0].strip(), tuple(name.strip() for _, name in rows))


def check_driver(driver: Driver) -> Finding:
    """Check the driver."""
    if driver.problem:
        remedy = "Restart the machine. If that does not help, reinstall the driver. In a container, use --gpus all."
        state: State = "problem" if driver.version else "warning"
        return Finding("doctor.driver_failed", "driver", state, driver.problem, remedy)
    if driver.version is None:
        return Finding("doctor.driver_none", "driver", "good", "no NVIDIA driver, and no NVIDIA GPU that needs one")
    return Finding("doctor.driver", "driver", "good", f"NVIDIA {driver.version}")


def check_gpus(torch: Outcome, driver: Driver) -> Iterator[Finding]:
    """Yield findings for the GPUs that torch can use."""
    devices: Sequence[Mapping[str, Any]] = torch.facts.get("devices", ())
    if torch.end != "loaded":
        yield Finding("doctor.gpu_unknown", "GPU", "warning", "unknown, because torch does not load", "Repair torch.")
    elif not devices:
        yield _no_gpu(torch.facts, driver)
    for index, device in enumerate(devices):
        yield _device(index, device)
    if len(devices) > 1:
        text = f"{len(devices)} GPUs. A run uses the first one. CUDA_VISIBLE_DEVICES=1 selects the second"
        yield Finding("doctor.gpus_several", "several GPUs", "good", text)


def _no_gpu(facts: Mapping[str, Any], driver: Driver) -> Finding:
    if not driver.gpus and driver.version is None:
        return Finding("doctor.gpu_none", "GPU", "warning", "none", NO_GPU)
    names = ", ".join(driver.gpus) or "a driver without a GPU"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"{names}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return Finding("doctor.gpu_hidden", "GPU", "warning", text, "Unset CUDA_VISIBLE_DEVICES to use it.")
    if not facts.get("cuda"):
        text = f"{names}, but torch {facts.get('version')} is a build without CUDA"
        return Finding(
            "doctor.torch_without_cuda",
            "GPU",
            "problem",
            text,
            "Install torch with CUDA: pip install --force-reinstall -c constraints.txt torch torchvision.",
        )
    message = " ".join(" ".join(facts.get("warnings", ())).split())[:300]
    text = f"{names}, but torch (CUDA {facts['cuda']}) cannot use it" + (f": {message}" if message else "")
    remedy = f"Update the driver to one for CUDA {facts['cuda']} or later"
    remedy += ", or install a torch build for an older CUDA." if re.search("too old", message) else ", then restart."
    return Finding("doctor.gpu_unusable", "GPU", "problem", text, remedy)


def _device(index: int, device: Mapping[str, Any]) -> Finding:
    """Check one GPU that torch lists."""
    total, free = device["total"] / GIB, device.get("free", 0) / GIB
    major, minor = device["capability"]
    text = f"{device['name']}, compute capability {major}.{minor}, {total:.1f} GiB, {free:.1f} GiB free"
    text += ", bfloat16" if device.get("bf16") else ", no bfloat16"
    name = f"GPU {index}"
    if device.get("error"):
        remedy = "Install a torch build with kernels for this GPU, use another GPU, or end other processes on it."
        text += f", and computing fails: {' '.join(device['error'].split())[:300]}"
        return Finding("doctor.gpu_computes_nothing", name, "problem", text, remedy)
    remedies = {}
    if not device.get("bf16"):
        remedies["doctor.gpu_no_bfloat16"] = (
            "Quantize the weights. Without bfloat16, unquantized weights are float32: slower, and twice the memory."
        )
    if total < ENOUGH:
        remedies["doctor.gpu_memory_small"] = (
            "Use a smaller model, smaller images or fewer generations. A 4B model needs 16 to 24 GB."
        )
    if free < FREE_FRACTION * total:
        remedies["doctor.gpu_memory_in_use"] = (
            "End the other process that uses its memory (nvidia-smi shows it). In a notebook, restart the kernel."
        )
    if remedies:
        return Finding(next(iter(remedies)), name, "warning", text, " ".join(remedies.values()))
    return Finding("doctor.gpu", name, "good", text)


def _kernel_module() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else None
