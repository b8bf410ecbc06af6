"""Importing Unsloth: first of all, with what it compiles in the run folder and one GPU to see."""

import gc
import logging
import os
import sys
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.runfolder import world_size

log = logging.getLogger(__name__)

PATCHED = ("transformers", "trl", "peft")
"""What Unsloth rewrites when it is imported; names that others took from them before stay as they were."""

COMPILED = "unsloth"
"""The folder in the run folder that takes the modules that Unsloth generates."""


def start(folder: Path) -> None:
    """Import Unsloth with its cache in ``folder``; nothing happens where it is imported already.

    Left alone, Unsloth writes ``unsloth_compiled_cache`` into the working directory, and two runs there share it.

    Raises:
        ModelError: one of ``PATCHED`` was imported before, or Unsloth cannot be imported.
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
    log.info("backend unsloth: the modules that it generates are in %s", compiled)
    _see_one_gpu()
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
    # Unsloth collects garbage nine times in each load, and each time would look at 700,000 objects of these libraries.
    gc.freeze()


def _see_one_gpu() -> None:
    """Of several GPUs one is used (Kaggle has two): Unsloth and transformers would spread the model over all."""
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
