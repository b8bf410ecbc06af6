"""Each library: its version, whether it loads, and what follows where it does not."""

import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet

from toolkit.doctor.causes import HEADLESS, NO_GPU, TORCHVISION, find_cause
from toolkit.doctor.finding import Finding, State, joined
from toolkit.doctor.probes import Outcome
from toolkit.doctor.versions import allowed, check_version, installed, pair_problem, pair_remedy
from toolkit.run import TESTED

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
            "allowed versions",
            "warning",
            "the package toolkit is not installed, so nothing says which versions it allows",
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
        return Finding(package, "good", _took(outcome))
    if outcome.end == "untried":
        remedy = "Raise the limit: toolkit doctor --time-limit 600."
        return Finding(package, "warning", "not tried, since the time for all libraries was used up", remedy)
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
            text = f"{found}, and {' and '.join(several[1:])} besides, which write into the same folder"
            return Finding(
                package, "warning", text, f"Keep one of them: pip uninstall -y {' '.join(several)}; then {HEADLESS}"
            )
    if found is None:
        needed = ranges is None or package.replace("_", "-") in ranges
        remedy = f"pip install '{package}=={TESTED[package]}'."
        return Finding(
            package, _severity(package, gpu) if needed and package != "xformers" else "warning", "not installed", remedy
        )
    return check_version(package, found, ranges)


def _other_opencv() -> Finding:
    for other in OPENCV[1:]:
        if found := installed(other):
            return Finding("opencv-python", "good", f"{found} as {other}, which has the same module")
    remedy = f"pip install 'opencv-python=={TESTED['opencv-python']}'."
    return Finding("opencv-python", "problem", "not installed", remedy)


def _broken(package: str, outcome: Outcome, gpu: bool) -> Finding:
    """An import that raised, died or hung."""
    cause = find_cause(outcome.error, package)
    said = {"hung": "hangs", "died": "takes the process with it", "missing": "cannot be imported"}
    text = f"{said.get(outcome.end, 'fails to load')}: {outcome.cause}"
    if cause.meaning and outcome.end != "hung":
        text += f" ({cause.meaning})"
    if outcome.where:
        text += f", at {outcome.where}"
    if package == "torchvision" and (pair := pair_problem()):
        text += f"; {pair}"
    remedy = cause.remedy
    if outcome.end == "hung":
        remedy = f"Try once more with more time (toolkit doctor --time-limit 600); if it hangs again: {remedy}"
    if package != "torchvision" and re.search(TORCHVISION, outcome.error, re.DOTALL):
        remedy = "See torchvision: with it, this is solved too."
    if package == "xformers" and outcome.end == "failed":
        return Finding(package, "warning", f"{text}; {SDPA}", remedy)
    if gpu and package in INSTEAD:
        remedy += f" Meanwhile: {INSTEAD[package]}."
    return Finding(package, _severity(package, gpu), text, remedy)


def _severity(package: str, gpu: bool) -> State:
    return "warning" if package in FOR_A_GPU and not gpu else "problem"


def _took(outcome: Outcome) -> str:
    return f"loads in {outcome.seconds:.1f} s"


def _torchvision(outcome: Outcome, gpu: bool) -> Finding:
    """Numbers that do not fit are a problem even where the import went well: other parts of it are missing."""
    problem = pair_problem()
    if problem:
        return Finding("torchvision", "problem", f"{_took(outcome)}, but {problem}", pair_remedy())
    return Finding("torchvision", "good", f"{_took(outcome)}, fits torch")


def _unsloth_without_gpu(gpu: bool) -> Finding:
    if gpu:
        remedy = "Run it alone and read what it says: python -c 'import unsloth'."
        return Finding("unsloth", "problem", "says that there is no GPU, and torch has one", remedy)
    return Finding("unsloth", "good", "refuses to load without a GPU, as it should; nothing uses it here")


def _xformers(outcome: Outcome, gpu: bool) -> Finding:
    error = outcome.facts.get("error")
    if error:
        first = " ".join(str(error).split())[:300]
        text = f"its compiled part cannot be used ({first}); {SDPA}"
        remedy = "Install the one for your torch (unsloth install-kernels xformers), or pip uninstall -y xformers."
        return Finding("xformers", "warning", text, remedy)
    if outcome.facts.get("ran"):
        return Finding("xformers", "good", f"{_took(outcome)}, its attention runs on the GPU; Unsloth uses it")
    text = f"{_took(outcome)}, its compiled part too" + ("" if gpu else "; nothing uses it without a GPU")
    return Finding("xformers", "good", text)


def _bitsandbytes(outcome: Outcome, gpu: bool) -> Finding:
    error = str(outcome.facts.get("error") or "")
    if outcome.facts.get("cuda"):
        return Finding("bitsandbytes", "good", f"{_took(outcome)}, with its CUDA library: 4 and 8 bits work")
    if not gpu:
        text = f"{_took(outcome)}, with its CPU library, since there is no GPU; 4 and 8 bits work, slowly"
        return Finding("bitsandbytes", "good", text)
    cause = find_cause(error, "bitsandbytes")
    text = f"loads without its CUDA library ({' '.join(error.split())[:300] or 'no reason told'}): no 4 or 8 bits"
    remedy = f"Read what python -m bitsandbytes says. {cause.remedy} Meanwhile: {INSTEAD['bitsandbytes']}."
    return Finding("bitsandbytes", "problem", text, remedy)
