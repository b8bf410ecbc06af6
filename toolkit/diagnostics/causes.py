"""What is known of the ways in which an import breaks: the words of the error, what they mean, what to do."""

import re
from dataclasses import dataclass, replace

from toolkit.diagnostics.versions import pair_remedy

HEADLESS = (
    "If no windows are needed: pip uninstall -y opencv-python opencv-contrib-python && pip install "
    "--force-reinstall opencv-python-headless; or, as root, apt-get install -y libgl1 libglib2.0-0."
)


@dataclass(frozen=True, slots=True)
class Cause:
    """``meaning`` is a part of a sentence. ``pair_remedy`` makes the remedy if it is empty."""

    code: str
    pattern: str
    meaning: str
    remedy: str


NO_GPU = (
    r"cannot find any torch accelerator|only works on NVIDIA|does not (?:currently )?work on (?:cpu|mps|this device)"
)
"""What Unsloth's NotImplementedError says on a machine without a GPU."""

TORCHVISION = r"torchvision::\w+ does not exist|torchvision.*(?:undefined symbol|_C\.so)"

CAUSES: tuple[Cause, ...] = (
    Cause("doctor.torchvision_mismatch", TORCHVISION, "torchvision does not match torch", ""),
    Cause(
        "doctor.system_library_missing",
        r"lib(?:GL|EGL|gthread-2\.0|glib-2\.0|SM|Xext|Xrender|xcb[\w-]*)\.so\S*: cannot open shared object",
        "a library for graphical windows is missing, which is common on servers and in containers",
        HEADLESS,
    ),
    Cause(
        "doctor.built_for_other_library",
        r"undefined symbol",
        "it was built for another version of a library that it uses, usually torch",
        "Install the tested versions together: pip install -e . -c constraints.txt.",
    ),
    Cause(
        "doctor.cuda_library_missing",
        r"lib(?:cud|cu|nv|nccl)\w*\.so\S*: (?:cannot open shared object|no such file)",
        "one of CUDA's libraries is missing",
        "Install torch again with its CUDA libraries: pip install --force-reinstall -c constraints.txt torch.",
    ),
    Cause(
        "doctor.built_for_other_numpy",
        r"numpy\.dtype size changed|_ARRAY_API not found|compiled using NumPy 1|numpy\.core\.multiarray failed",
        "it was built for another NumPy",
        "Install it again, after NumPy: pip install -e . -c constraints.txt --force-reinstall.",
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
        "Install the tested versions together: pip install -e . -c constraints.txt; in a notebook, restart the kernel.",
    ),
    Cause(
        "doctor.dependency_missing",
        r"No module named|PackageNotFoundError",
        "a package that it needs is not installed",
        "Install it, or everything anew: pip install -e . -c constraints.txt.",
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
"""The first that fits counts."""

UNKNOWN = "Install it again: pip install --force-reinstall --no-deps -c constraints.txt {package}."


def find_cause(error: str, package: str) -> Cause:
    """What is known of this error; of an unknown one, a meaning without words and the advice to install anew."""
    for cause in CAUSES:
        if re.search(cause.pattern, error, re.IGNORECASE | re.DOTALL):
            return cause if cause.remedy else replace(cause, remedy=pair_remedy())
    code = "doctor.load_died" if re.match("ended by|left with", error) else "doctor.load_failed"
    return Cause(code, "", "", UNKNOWN.format(package=package))
