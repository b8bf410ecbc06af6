"""Each library: its version, whether it loads, and what follows where it does not."""

import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet

from toolkit.diagnostics.causes import HEADLESS, NO_GPU, TORCHVISION, find_cause
from toolkit.diagnostics.finding import Finding, State, joined
from toolkit.diagnostics.probes import Outcome
from toolkit.diagnostics.versions import allowed, check_version, installed, pair_problem, pair_remedy
from toolkit.runfolder import TESTED

PROBE_OF: Mapping[str, str | None] = {"unsloth_zoo": None, "opencv-python": "opencv"}
"""Distribution -> its probe, where the two are not named alike; None: another probe loads it."""

FOR_A_GPU = frozenset({"bitsandbytes", "unsloth", "unsloth_zoo", "xformers", "triton"})
"""What nothing uses on a machine without a GPU."""

INSTEAD: Mapping[str, str] = {
    "unsloth": 'set model.backend = "hf" (transformers and peft) until it loads',
    "bitsandbytes": 'set model.precision = "16bit" until it loads, which takes four times the memory for the weights',
    "xformers": "pip uninstall -y xformers, since Unsloth loads it; PyTorch's own attention is used then",
}
"""What helps meanwhile."""

SDPA = "Unsloth uses PyTorch's scaled_dot_product_attention (SDPA) instead: the same results, often slower"

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
"""Distributions that all install the module cv2."""


def check_libraries(outcomes: Mapping[str, Outcome], gpu: bool) -> Iterator[Finding]:
    """A finding for each tested distribution.

    Args:
        outcomes: of the probes.
        gpu: whether torch can use a GPU.
    """
    ranges = allowed()
    if ranges is None:
        yield Finding(
            "doctor.ranges_unknown",
            "allowed versions",
            "warning",
            "the package toolkit is not installed, so the versions that it allows are unknown",
            "Install it: pip install -e . -c constraints.txt.",
        )
    for package in TESTED:
        probe = PROBE_OF.get(package, package)
        finding = _version(package, ranges, gpu)
        absent = installed(package) is None and probe is not None and outcomes[probe].end == "missing"
        if probe is None or absent:
            yield finding
        else:
            yield joined(finding, check_load(package, outcomes[probe], gpu))


def check_load(package: str, outcome: Outcome, gpu: bool) -> Finding:
    """Whether it loads, and what its probe found in it."""
    if outcome.end == "loaded":
        special = {"xformers": _xformers, "bitsandbytes": _bitsandbytes, "torchvision": _torchvision}
        if package in special:
            return special[package](outcome, gpu)
        return Finding("doctor.loads", package, "good", _took(outcome))
    if outcome.end == "untried":
        remedy = "Raise the limit: toolkit doctor --time-limit 600."
        text = "not tried, because the time for all libraries was used up"
        return Finding("doctor.load_not_tried", package, "warning", text, remedy)
    if package == "unsloth" and re.search(NO_GPU, outcome.error):
        return _unsloth_without_gpu(gpu)
    return _broken(package, outcome, gpu)


def _version(package: str, ranges: Mapping[str, SpecifierSet] | None, gpu: bool) -> Finding:
    found = installed(package)
    if found is None and package == "opencv-python":
        return _other_opencv()
    if package == "opencv-python":
        several = [one for one in OPENCV if installed(one)]
        if len(several) > 1:
            text = f"{found}, and also {' and '.join(several[1:])}, which install into the same folder"
            remedy = f"Keep one of them: pip uninstall -y {' '.join(several)}, then {HEADLESS}"
            return Finding("doctor.opencv_several", package, "warning", text, remedy)
    if found is None:
        needed = ranges is None or package.replace("_", "-") in ranges
        remedy = f"pip install '{package}=={TESTED[package]}'."
        state: State = _severity(package, gpu) if needed and package != "xformers" else "warning"
        return Finding("doctor.not_installed", package, state, "not installed", remedy)
    return check_version(package, found, ranges)


def _other_opencv() -> Finding:
    for other in OPENCV[1:]:
        if found := installed(other):
            text = f"{found} as {other}, which has the same module"
            return Finding("doctor.opencv_other", "opencv-python", "good", text)
    remedy = f"pip install 'opencv-python=={TESTED['opencv-python']}'."
    return Finding("doctor.not_installed", "opencv-python", "problem", "not installed", remedy)


def _broken(package: str, outcome: Outcome, gpu: bool) -> Finding:
    """An import that raised, died or hung."""
    cause = find_cause(outcome.error, package)
    said = {"hung": "hangs", "died": "ends the process", "missing": "cannot be imported"}
    text = f"{said.get(outcome.end, 'fails to load')}: {outcome.cause}"
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
        return Finding(code, package, "warning", f"{text}. {SDPA}", remedy)
    if gpu and package in INSTEAD:
        remedy += f" Meanwhile: {INSTEAD[package]}."
    return Finding(code, package, _severity(package, gpu), text, remedy)


def _severity(package: str, gpu: bool) -> State:
    return "warning" if package in FOR_A_GPU and not gpu else "problem"


def _took(outcome: Outcome) -> str:
    return f"loads in {outcome.seconds:.1f} s"


def _torchvision(outcome: Outcome, gpu: bool) -> Finding:
    """Numbers that do not fit are a problem even where the import went well: other parts of it are missing."""
    problem = pair_problem()
    if problem:
        text = f"{_took(outcome)}, but {problem}"
        return Finding("doctor.torchvision_for_other_torch", "torchvision", "problem", text, pair_remedy())
    return Finding("doctor.loads", "torchvision", "good", f"{_took(outcome)}, matches torch")


def _unsloth_without_gpu(gpu: bool) -> Finding:
    if gpu:
        remedy = "Import it alone and read its output: python -c 'import unsloth'."
        text = "finds no GPU, but torch finds one"
        return Finding("doctor.unsloth_finds_no_gpu", "unsloth", "problem", text, remedy)
    text = "does not load without a GPU, which is expected. Nothing uses it here"
    return Finding("doctor.unsloth_without_gpu", "unsloth", "good", text)


def _xformers(outcome: Outcome, gpu: bool) -> Finding:
    error = outcome.facts.get("error")
    if error:
        first = " ".join(str(error).split())[:300]
        text = f"its compiled extension cannot be used ({first}). {SDPA}"
        remedy = "Install the one for your torch (unsloth install-kernels xformers), or pip uninstall -y xformers."
        return Finding("doctor.xformers_extension_unusable", "xformers", "warning", text, remedy)
    if outcome.facts.get("ran"):
        text = f"{_took(outcome)}, and its attention runs on the GPU. Unsloth uses it"
        return Finding("doctor.loads", "xformers", "good", text)
    text = f"{_took(outcome)} with its compiled extension" + ("" if gpu else ". Nothing uses it without a GPU")
    return Finding("doctor.loads", "xformers", "good", text)


def _bitsandbytes(outcome: Outcome, gpu: bool) -> Finding:
    error = str(outcome.facts.get("error") or "")
    if outcome.facts.get("cuda"):
        text = f"{_took(outcome)} with its CUDA library: 4 and 8 bits work"
        return Finding("doctor.loads", "bitsandbytes", "good", text)
    if not gpu:
        text = f"{_took(outcome)} with its CPU library, because no GPU is available. 4 and 8 bits work, but slowly"
        return Finding("doctor.bitsandbytes_on_cpu", "bitsandbytes", "good", text)
    cause = find_cause(error, "bitsandbytes")
    text = f"loads without its CUDA library ({' '.join(error.split())[:300] or 'no reason given'}): no 4 or 8 bits"
    remedy = f"Read the output of python -m bitsandbytes. {cause.remedy} Meanwhile: {INSTEAD['bitsandbytes']}."
    return Finding("doctor.bitsandbytes_without_cuda", "bitsandbytes", "problem", text, remedy)
