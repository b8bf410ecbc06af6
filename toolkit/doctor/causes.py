"""What is known of the ways in which an import breaks: the words of the error, what they mean, what to do."""

import re
from dataclasses import dataclass

from toolkit.doctor.versions import pair_remedy

HEADLESS = (
    "Where nothing is to be shown in windows: pip uninstall -y opencv-python opencv-contrib-python && pip install "
    "--force-reinstall opencv-python-headless; or, as root, apt-get install -y libgl1 libglib2.0-0."
)


@dataclass(frozen=True, slots=True)
class Cause:
    """``meaning`` is a part of a sentence; an empty ``remedy`` is made at the time."""

    pattern: str
    meaning: str
    remedy: str


NO_GPU = (
    r"cannot find any torch accelerator|only works on NVIDIA|does not (?:currently )?work on (?:cpu|mps|this device)"
)
"""What Unsloth's NotImplementedError says on a machine without a GPU."""

TORCHVISION = r"torchvision::\w+ does not exist|torchvision.*(?:undefined symbol|_C\.so)"

CAUSES: tuple[Cause, ...] = (
    Cause(TORCHVISION, "torchvision does not fit torch", ""),
    Cause(
        r"lib(?:GL|EGL|gthread-2\.0|glib-2\.0|SM|Xext|Xrender|xcb[\w-]*)\.so\S*: cannot open shared object",
        "a library for windows is missing, as on a server or in a container",
        HEADLESS,
    ),
    Cause(
        r"undefined symbol",
        "it was built for another version of a library that it uses, mostly torch",
        "Install the tested versions together: pip install -e . -c constraints.txt.",
    ),
    Cause(
        r"lib(?:cud|cu|nv|nccl)\w*\.so\S*: (?:cannot open shared object|no such file)",
        "one of CUDA's libraries is missing",
        "Install torch again with its CUDA libraries: pip install --force-reinstall -c constraints.txt torch.",
    ),
    Cause(
        r"numpy\.dtype size changed|_ARRAY_API not found|compiled using NumPy 1|numpy\.core\.multiarray failed",
        "it was built for another NumPy",
        "Install it again, after NumPy: pip install -e . -c constraints.txt --force-reinstall.",
    ),
    Cause(
        r"GLIBC(?:XX)?_[\d.]+.? not found",
        "the system's C or C++ library is too old for it",
        "Use a newer system or container (Ubuntu 22.04 or later), or conda's libstdcxx-ng.",
    ),
    Cause(
        r"cannot import name|has no attribute|unexpected keyword argument",
        "its version and that of another library do not fit",
        "Install the tested versions together: pip install -e . -c constraints.txt; in a notebook, restart the kernel.",
    ),
    Cause(
        r"No module named|PackageNotFoundError",
        "a package that it needs is not installed",
        "Install it, or everything anew: pip install -e . -c constraints.txt.",
    ),
    Cause(
        r"No space left on device|Errno 28",
        "the disk is full",
        "Make room.",
    ),
    Cause(
        r"MemoryError|Cannot allocate memory|SIGKILL",
        "the memory was used up, or the system ended it",
        "End other programs, or raise the container's memory limit.",
    ),
)
"""The first that fits counts."""

UNKNOWN = "Install it again: pip install --force-reinstall --no-deps -c constraints.txt {package}."


def find_cause(error: str, package: str) -> Cause:
    """What is known of this error; of an unknown one, a meaning without words and the advice to install anew."""
    for cause in CAUSES:
        if re.search(cause.pattern, error, re.IGNORECASE | re.DOTALL):
            return cause if cause.remedy else Cause(cause.pattern, cause.meaning, pair_remedy())
    return Cause("", "", UNKNOWN.format(package=package))
