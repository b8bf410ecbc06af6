"""Compare installed versions with tested and allowed versions, without importing the libraries."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from toolkit.diagnostics.finding import Finding
from toolkit.runfolder import TESTED_VERSIONS

OWN = "toolkit"
TOGETHER = "pip install -e . -c constraints.txt"
BUILT_TOGETHER = frozenset({"torch", "torchvision", "xformers", "triton", "unsloth", "unsloth_zoo"})
"""Distributions whose versions depend on each other."""

TORCHVISION_OF: Mapping[str, str] = {
    "2.6": "0.21",
    "2.7": "0.22",
    "2.8": "0.23",
    "2.9": "0.24",
    "2.10": "0.25",
    "2.11": "0.26",
    "2.12": "0.27",
    "2.13": "0.28",
    "2.14": "0.29",
}
"""torch -> matching torchvision, for the torch versions that the package allows."""


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
        lines = requires(OWN) or []
    except PackageNotFoundError:
        return None
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): one.specifier
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def allowed_python() -> SpecifierSet | None:
    """Return the range of Python versions that the package allows. None: the package is not installed."""
    try:
        text = distribution(OWN).metadata["Requires-Python"]
    except PackageNotFoundError:
        return None
    return SpecifierSet(text or "")


def check_version(package: str, found: str, ranges: Mapping[str, SpecifierSet] | None) -> Finding:
    """Check whether an installed version is tested, allowed, or neither."""
    tested = TESTED_VERSIONS[package]
    one = f"Install the tested one: pip install '{package}=={tested}'."
    remedy = f"Install the tested set: {TOGETHER}." if package in BUILT_TOGETHER else one
    try:
        given = Version(found)
    except InvalidVersion:
        text = f"{found}, which cannot be compared with the tested version"
        return Finding("doctor.version_unreadable", package, "warning", text, remedy)
    wanted = (ranges or {}).get(canonicalize_name(package), SpecifierSet())
    if not wanted.contains(given, prereleases=True):
        text = f"{found}, which is not allowed ({wanted}, tested: {tested})"
        return Finding("doctor.version_not_allowed", package, "problem", text, remedy)
    if given.public != tested:
        text = f"{found}, not tested (tested: {tested})"
        return Finding("doctor.version_not_tested", package, "warning", text, remedy)
    return Finding("doctor.version_tested", package, "good", f"{found}, tested")


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
