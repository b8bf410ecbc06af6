"""llama.cpp's libraries as the package llama-cpp-python brings them: the C functions, by the headers' own names."""

import os
from dataclasses import dataclass
from typing import Any

PACKAGE = "llama-cpp-python"
"""libllama and libmtmd, built from source where it is installed, and ctypes' declarations of their functions."""


class LlamaError(RuntimeError):
    """A call of llama.cpp that reported a failure."""


@dataclass(frozen=True, slots=True)
class Library:
    """The two modules that hold the functions of llama.h and of mtmd.h."""

    llama: Any
    mtmd: Any


def load_library() -> Library:
    """Load both libraries into this process, which a fault in them would end: use ``child.Child``.

    Raises:
        ImportError: the package is not installed.
        OSError, RuntimeError: its libraries cannot be loaded on this machine.
    """
    from llama_cpp import llama_cpp, mtmd_cpp

    llama_cpp.llama_backend_init()
    return Library(llama_cpp, mtmd_cpp)


def threads() -> int:
    """How many threads to compute with: what OMP_NUM_THREADS says, else the processors that this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
