"""llama.cpp's libraries from the package llama-cpp-python: the C functions, under the names in the headers."""

import os
from dataclasses import dataclass
from typing import Any

PACKAGE = "llama-cpp-python"
"""It has libllama and libmtmd, built from source at installation, and ctypes declarations of their functions."""


class LlamaError(RuntimeError):
    """A call of llama.cpp failed."""


@dataclass(frozen=True, slots=True)
class Library:
    """The two modules with the functions of llama.h and mtmd.h."""

    llama: Any
    mtmd: Any


def load_library() -> Library:
    """Load both libraries into this process. A crash in them ends the process, so use ``child.Child``.

    Raises:
        ImportError: The package is not installed.
        OSError, RuntimeError: The libraries cannot be loaded on this machine.
    """
    from llama_cpp import llama_cpp, mtmd_cpp

    llama_cpp.llama_backend_init()
    return Library(llama_cpp, mtmd_cpp)


def threads() -> int:
    """Return the number of threads: OMP_NUM_THREADS, otherwise the CPUs available to this process."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdigit() and int(requested):
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
