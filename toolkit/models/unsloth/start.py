"""Import of Unsloth before other libraries, with its compiled modules in the run folder and one visible GPU."""

import gc
import logging
import os
import sys
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.runfolder import world_size

log = logging.getLogger(__name__)

PATCHED = ("transformers", "trl", "peft")
"""Libraries that Unsloth patches on import. Objects that other modules imported earlier stay unpatched."""

COMPILED = "unsloth"
"""Folder in the run folder for the modules that Unsloth generates."""


def start(folder: Path) -> None:
    """Import Unsloth with its cache in ``folder``, unless it is imported already.

    By default, Unsloth writes ``unsloth_compiled_cache`` to the working directory, which other runs would share.

    Raises:
        ModelError: One of ``PATCHED`` was imported before, or Unsloth cannot be imported.
    """
    if "unsloth" in sys.modules:
        return
    if early := [name for name in PATCHED if name in sys.modules]:
        raise ModelError(
            "model.unsloth_imported_late",
            "unsloth must be imported before transformers, trl and peft",
            place="[model] backend",
            value=early,
            remedy='Import unsloth at the top of your program, use the command line, or set backend = "hf".',
        )
    compiled = folder.absolute() / COMPILED
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(compiled)
    log.info("backend unsloth: generated modules are in %s", compiled)
    _use_one_gpu()
    try:
        import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        raise ModelError(
            "model.unsloth_not_importable",
            "unsloth must be importable",
            place="[model] backend",
            value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            remedy='Install the versions of constraints.txt, or set backend = "hf".',
        ) from error
    # Unsloth runs the garbage collector nine times per load. Freezing excludes 700,000 objects of these libraries.
    gc.freeze()


def _use_one_gpu() -> None:
    """Make one of several GPUs visible (Kaggle has two). Otherwise the model would be distributed over all."""
    import torch

    if world_size() > 1 or torch.cuda.device_count() < 2:
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    first = seen.split(",")[0].strip()
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    warn(
        "model.one_gpu_used",
        f"Unsloth trains on one GPU, so number {first} of {seen.count(',') + 1} is used alone",
        place="CUDA_VISIBLE_DEVICES",
        value=seen,
        remedy=f"Set CUDA_VISIBLE_DEVICES={first} to choose it yourself.",
    )
