"""The machine: Python, system, notebook, cores, RAM, shared memory, text encoding, disks, driver and GPUs."""

import locale
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.specifiers import SpecifierSet

from toolkit.diagnostics.finding import DoctorFinding, State
from toolkit.diagnostics.probes import GIB, Device, Outcome, TorchFacts
from toolkit.distribution import DISTRIBUTION, pip_install
from toolkit.errors import ToolkitError
from toolkit.runfolder.cache import cache_folder

MIN_RAM_GIB = 4.0
"""torch and transformers need 1 GiB, the quickstart about 2 GiB."""
TESTED_PYTHON = "3.11"
SHARED = Path("/dev/shm")
MIN_DISK_GIB = 1.0
"""Free disk space below which training is impossible."""
MIN_GPU_GIB = 14.5
"""A GPU with nominal 16 GB has more (a T4 has 14.6 GiB)."""
FREE_FRACTION = 0.8
"""Fraction of GPU memory that must be free. Otherwise another process uses it."""
DRIVER_TIMEOUT = 20.0
"""Timeout of nvidia-smi in seconds. It hangs if the driver does."""
NO_GPU = (
    "Recipes of the tiny model run. A 4B model needs one NVIDIA GPU with 16 to 24 GB. Kaggle and Colab provide one."
)
NOTEBOOKS = {
    "Kaggle": "Kaggle: restart the kernel after an installation. Only /kaggle/working is kept (20 GB)",
    "Colab": "Colab: restart the session after an installation. Copy away the files that you want to keep",
}
"""Notebook service -> what its users must know."""


def check_machine() -> Iterator[DoctorFinding]:
    """Yield one finding for each property of the machine. The one of the notebook exists on Kaggle and Colab only."""
    yield _python()
    yield _system()
    if place := notebook():
        yield DoctorFinding("doctor.notebook", "notebook", "good", NOTEBOOKS[place])
    yield _cores()
    yield _memory()
    if sys.platform == "linux":
        yield _shared_memory()
    yield _encoding()


def notebook() -> str | None:
    """Return Kaggle or Colab, by the environment variables that they set. None: neither."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") or os.environ.get("KAGGLE_URL_BASE"):
        return "Kaggle"
    return "Colab" if os.environ.get("COLAB_RELEASE_TAG") or os.environ.get("COLAB_GPU") else None


def _python() -> DoctorFinding:
    found = platform.python_version()
    wanted = _allowed_python()
    if wanted is not None and not wanted.contains(found, prereleases=True):
        text = f"{found}, which is not allowed ({wanted})"
        return DoctorFinding("doctor.python_not_allowed", "Python", "problem", text, "Use Python 3.11 to 3.13.")
    tested = "tested" if found.startswith(f"{TESTED_PYTHON}.") else f"allowed, but most tests run on {TESTED_PYTHON}"
    return DoctorFinding("doctor.python", "Python", "good", f"{found}, {tested}")


def _allowed_python() -> SpecifierSet | None:
    """Return the range of Python versions that the package allows. None: the package is not installed."""
    try:
        text = distribution(DISTRIBUTION).metadata["Requires-Python"]
    except PackageNotFoundError:
        return None
    return SpecifierSet(text or "")


def _system() -> DoctorFinding:
    text = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return DoctorFinding("doctor.system", "system", "good", text)
    remedy = "Run the tiny model's recipes here. Unsloth and xformers are not installed on this system."
    return DoctorFinding("doctor.system_not_tested", "system", "warning", f"{text}, tested on Linux x86_64", remedy)


def _cores() -> DoctorFinding:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    text = f"{cores} cores" if usable == cores else f"{usable} of {cores} cores"
    if usable >= 2:
        return DoctorFinding("doctor.cpu", "CPU", "good", text)
    remedy = "Use at least two cores: images are read while the model computes."
    return DoctorFinding("doctor.cpu_one_core", "CPU", "warning", text, remedy)


def _memory() -> DoctorFinding:
    total, free = _system_memory()
    limit, used = _container_memory()
    if limit is not None and (total is None or limit < total):
        total, free = limit, limit - (used or 0) if free is None else min(free, limit - (used or 0))
    if total is None or free is None:
        return DoctorFinding("doctor.memory_unknown", "RAM", "good", "not reported by this system")
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free" + (", the container's limit" if total == limit else "")
    if free / GIB >= MIN_RAM_GIB:
        return DoctorFinding("doctor.memory", "RAM", "good", text)
    remedy = f"End other programs. Below {MIN_RAM_GIB:.0f} GiB, the system may end a run."
    return DoctorFinding("doctor.memory_low", "RAM", "warning", text, remedy)


def _system_memory() -> tuple[int | None, int | None]:
    """Return total and available RAM in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return found.get("MemTotal"), found.get("MemAvailable")


def _container_memory() -> tuple[int | None, int | None]:
    """Return limit and usage of the control group in bytes (version 2, then version 1)."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((root / limit).read_text()), int((root / used).read_text())
        except (OSError, ValueError):  # There is no limit, or it is "max".
            continue
    return None, None


def _shared_memory() -> DoctorFinding:
    try:
        with tempfile.NamedTemporaryFile(dir=SHARED):
            status = os.statvfs(SHARED)
    except OSError as error:
        text = f"{SHARED} is not writable ({error.strerror})"
        remedy = "Make it writable for toolkit data prepare. In a container, use --shm-size=1g."
        return DoctorFinding("doctor.shared_memory_not_writable", "shared memory", "warning", text, remedy)
    text = f"{status.f_bavail * status.f_frsize / GIB:.1f} GiB free in {SHARED}"
    return DoctorFinding("doctor.shared_memory", "shared memory", "good", text)


def _encoding() -> DoctorFinding:
    """Check for UTF-8, which tables and file names need."""
    files, screen = locale.getpreferredencoding(False), getattr(sys.stdout, "encoding", None) or "none"
    if all(name.lower().replace("-", "") == "utf8" for name in (files, screen)):
        return DoctorFinding("doctor.encoding", "text encoding", "good", "UTF-8")
    text, remedy = f"{files} for files, {screen} for the screen", "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8."
    return DoctorFinding("doctor.encoding_not_utf8", "text encoding", "warning", text, remedy)


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Return the cache folder of huggingface_hub, by its rules, without importing it."""
    if folder := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(folder)
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    """Return the folder in which huggingface_hub stores the token."""
    above = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environment.get("HF_HOME") or os.path.join(above, "huggingface"))  # noqa: PTH118


def check_folders(environment: Mapping[str, str]) -> Iterator[DoctorFinding]:
    """Yield findings for the Hub's cache, the toolkit's cache and the working folder."""
    yield check_folder(
        "Hub cache", hub_cache(environment), 10, "models: a 4B model in 16 bits has 8.6 GB", "another folder in HF_HOME"
    )
    yield _own_cache(environment)
    yield check_folder(
        "working folder",
        Path.cwd(),
        20,
        "checkpoints, and merged weights of a 4B model (8.6 GB)",
        "another one, such as run.folder in the recipe",
    )


def _own_cache(environment: Mapping[str, str]) -> DoctorFinding:
    name = "toolkit cache"
    try:
        folder = cache_folder(environment)
    except ToolkitError as error:
        return DoctorFinding("doctor.cache_unknown", name, "problem", error.rule, error.remedy)
    return check_folder(name, folder, 5, "rows and resized images", "another folder in TOOLKIT_CACHE")


def check_folder(name: str, folder: Path, wanted: float, holds: str, other: str) -> DoctorFinding:
    """Check that ``folder`` is writable and has free space.

    Args:
        name: The name of the finding.
        folder: The folder. If it does not exist, the nearest existing parent is checked. No file remains in it.
        wanted: The GiB that should be free.
        holds: The content of the folder.
        other: How to select another folder.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        text = f"{folder} is not writable ({error.strerror or error})"
        return DoctorFinding("doctor.folder_not_writable", name, "problem", text, f"Make it writable, or set {other}.")
    text = f"{folder}, {free:,.1f} GiB free"
    if free < MIN_DISK_GIB:
        remedy = f"Free disk space, or set {other}. The folder stores {holds}."
        return DoctorFinding("doctor.disk_full", name, "problem", text, remedy)
    if free < wanted:
        remedy = f"Free disk space up to {wanted:.0f} GiB, or set {other}. The folder stores {holds}."
        return DoctorFinding("doctor.disk_low", name, "warning", text, remedy)
    return DoctorFinding("doctor.folder", name, "good", text)


def _expanded(folder: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(folder)))  # noqa: PTH111  # Path's own raises without a home


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
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=DRIVER_TIMEOUT, check=False
        )
    except FileNotFoundError:
        return Driver(_kernel_module())
    except subprocess.TimeoutExpired:
        return Driver(_kernel_module(), problem=f"nvidia-smi did not answer within {DRIVER_TIMEOUT:.0f} s")
    except OSError as error:
        return Driver(_kernel_module(), problem=f"nvidia-smi cannot be run: {error.strerror}")
    rows = [line.split(",", 1) for line in done.stdout.splitlines() if "," in line]
    if done.returncode or not rows:
        message = " ".join((done.stdout + done.stderr).split())[:200]
        return Driver(_kernel_module(), problem=f"nvidia-smi fails: {message or f'exit code {done.returncode}'}")
    return Driver(rows[0][0].strip(), tuple(name.strip() for _, name in rows))


def check_driver(driver: Driver) -> DoctorFinding:
    """Check the driver."""
    if driver.problem:
        remedy = "Restart the machine. If that does not help, reinstall the driver. In a container, use --gpus all."
        state: State = "problem" if driver.version else "warning"
        return DoctorFinding("doctor.driver_failed", "driver", state, driver.problem, remedy)
    if driver.version is None:
        return DoctorFinding(
            "doctor.driver_none", "driver", "good", "no NVIDIA driver, and no NVIDIA GPU that needs one"
        )
    return DoctorFinding("doctor.driver", "driver", "good", f"NVIDIA {driver.version}")


def check_gpus(torch: Outcome, driver: Driver) -> Iterator[DoctorFinding]:
    """Yield findings for the GPUs that torch can use."""
    facts = torch.report.torch
    if torch.end != "loaded":
        yield DoctorFinding(
            "doctor.gpu_unknown", "GPU", "warning", "unknown, because torch does not load", "Repair torch."
        )
    elif not facts.devices:
        yield _no_gpu(facts, driver)
    for index, device in enumerate(facts.devices):
        yield _check_device(index, device)
    if len(facts.devices) > 1:
        text = f"{len(facts.devices)} GPUs. A run uses the first one. CUDA_VISIBLE_DEVICES=1 selects the second"
        yield DoctorFinding("doctor.gpus_several", "several GPUs", "good", text)


def _no_gpu(facts: TorchFacts, driver: Driver) -> DoctorFinding:
    if not driver.gpus and driver.version is None:
        return DoctorFinding("doctor.gpu_none", "GPU", "warning", "none", NO_GPU)
    names = ", ".join(driver.gpus) or "a driver without a GPU"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"{names}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return DoctorFinding("doctor.gpu_hidden", "GPU", "warning", text, "Unset CUDA_VISIBLE_DEVICES to use it.")
    if not facts.cuda:
        text = f"{names}, but torch {facts.version} is a build without CUDA"
        return DoctorFinding(
            "doctor.torch_without_cuda",
            "GPU",
            "problem",
            text,
            f"Install torch with CUDA: {pip_install('--force-reinstall torch torchvision')}.",
        )
    message = " ".join(" ".join(facts.warnings).split())[:300]
    text = f"{names}, but torch (CUDA {facts.cuda}) cannot use it" + (f": {message}" if message else "")
    remedy = f"Update the driver to one for CUDA {facts.cuda} or later"
    remedy += ", or install a torch build for an older CUDA." if re.search("too old", message) else ", then restart."
    return DoctorFinding("doctor.gpu_unusable", "GPU", "problem", text, remedy)


def _check_device(index: int, device: Device) -> DoctorFinding:
    """Check one GPU that torch lists."""
    total, free = device.total / GIB, device.free / GIB
    major, minor = device.capability
    text = f"{device.name}, compute capability {major}.{minor}, {total:.1f} GiB, {free:.1f} GiB free"
    text += ", bfloat16" if device.bf16 else ", no bfloat16"
    name = f"GPU {index}"
    if device.error:
        remedy = "Install a torch build with kernels for this GPU, use another GPU, or end other processes on it."
        text += f", and computing fails: {' '.join(device.error.split())[:300]}"
        return DoctorFinding("doctor.gpu_computes_nothing", name, "problem", text, remedy)
    remedies = {}
    if not device.bf16:
        remedies["doctor.gpu_no_bfloat16"] = (
            "Quantize the weights. Without bfloat16, unquantized weights are float32: slower, and twice the memory."
        )
    if total < MIN_GPU_GIB:
        remedies["doctor.gpu_memory_small"] = (
            "Use a smaller model, smaller images or fewer generations. A 4B model needs 16 to 24 GB."
        )
    if free < FREE_FRACTION * total:
        remedies["doctor.gpu_memory_in_use"] = (
            "End the other process that uses its memory (nvidia-smi shows it). In a notebook, restart the kernel."
        )
    if remedies:
        return DoctorFinding(next(iter(remedies)), name, "warning", text, " ".join(remedies.values()))
    return DoctorFinding("doctor.gpu", name, "good", text)


def _kernel_module() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else None
