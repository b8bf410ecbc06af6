"""OOM recovery: the sizes that a training stage continues with after an out-of-memory error.

A pass that ran out of memory leaves the gradients of some of its rows, and a trainer whose buffers cannot be reset. So
nothing is repaired. The stage saves the last finished optimizer step, frees trainer and model, and resumes with smaller
sizes, exactly like a run that was interrupted there. The sizes are stored in the stage's folder and hold until the
stage ends, even if the run is interrupted. The recipe never changes, and ``--fresh`` starts with its sizes.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import RunError, TrainingError, warn
from toolkit.models.oom import BatchLimit, Sizes, recipe_sizes
from toolkit.recipe import Optimisation, Recipe
from toolkit.runfolder import from_json, is_main_process, read_json, write_json
from toolkit.training.results import GpuMemory, OutOfMemory, PreflightResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The content of ``sizes.json``."""

    micro_batch: int
    accumulation: int
    completions_per_generate: int | None
    recoveries: tuple[OutOfMemory, ...]


class Recovery:
    """The sizes of a stage, stored in its ``sizes.json``, and the out-of-memory errors that led to them.

    Args:
        folder: The stage's folder.
        recipe: The recipe.
        stage: The name of the stage.
        sizes: The sizes to start with, unless ``sizes.json`` has others. None: those of the recipe.

    Attributes:
        sizes: The current sizes.
        errors: The errors in all sessions.
        logged: The number of errors in metrics.jsonl.
    """

    logged = 0

    def __init__(self, folder: Path, recipe: Recipe, stage: str, sizes: Sizes | None = None) -> None:
        self.recipe, self.stage = recipe, stage
        self._file = folder / "sizes.json"
        self.sizes, self.errors = sizes or recipe_sizes(recipe, stage), list[OutOfMemory]()
        if self._file.is_file():
            self._read()

    def rollout_limit(self) -> BatchLimit:
        """Return the limit of completions per ``generate`` call. Each halving is recorded here."""
        return BatchLimit(self.sizes.completions, self._halve_rollout)

    def shrink(self, step: int, during: str, start: str | None, plan: Mapping[str, Any] | None) -> None:
        """Switch to the next smaller sizes.

        Args:
            step: The optimizer step that did not fit.
            during: The activity that ran out of memory.
            start: The checkpoint to continue from. None: the beginning of the stage.
            plan: The content of plan.json, for advice.

        Raises:
            TrainingError: The sizes cannot be halved further.
        """
        smaller = self.sizes.smaller()
        if smaller is None:
            raise TrainingError(
                "training.out_of_memory",
                "GPU memory must be large enough for one row at a time",
                place=f"{self.stage}, step {step}, {during}",
                value=f"out of memory with {_describe(self.sizes)}, {_memory_in_use()}",
                remedy=advice(self.recipe, self.stage, plan),
            )
        self._note(smaller, step, during, start or "the start of the stage")
        warn(
            "training.batch_halved",
            f"out of memory, continuing from {start or 'the start of the stage'} with {_describe(smaller)}",
            place=f"{self.stage}, step {step}, {during}",
        )
        if self.stage == "grpo" and self.recipe.grpo and self.recipe.grpo.loss == "bnpo":
            warn(
                "training.loss_depends_on_batch",
                "the loss divides by the tokens of a micro-batch, so smaller micro-batches change the update",
                place="[grpo] loss",
                value="bnpo",
                remedy='Set grpo.loss = "dapo" to keep the update.',
            )

    def figures(self) -> dict[str, float]:
        """Return the new errors and the current sizes for the next line of metrics.jsonl, or nothing."""
        new, self.logged = len(self.errors) - self.logged, len(self.errors)
        if not new:
            return {}
        sizes = {name: float(value) for name, value in _to_json(self.sizes).items() if value is not None}
        return {"out_of_memory": float(new), **sizes}

    def gpu_memory(self, peaks: Mapping[str, int | None], preflight: PreflightResult | None) -> GpuMemory:
        """Return the peaks, the number of errors in all sessions, each error, and the final sizes."""
        return GpuMemory(
            peak_allocated_bytes=peaks["peak_allocated_bytes"],
            peak_reserved_bytes=peaks["peak_reserved_bytes"],
            out_of_memory=len(self.errors),
            micro_batch=self.sizes.micro_batch,
            accumulation=self.sizes.accumulation,
            completions_per_generate=self.sizes.completions,
            recoveries=tuple(self.errors),
            preflight=preflight,
        )

    def _halve_rollout(self, completions: int) -> None:
        self._note(replace(self.sizes, completions=completions), None, "rollout", "the same rollout")

    def _note(self, sizes: Sizes, step: int | None, during: str, start: str) -> None:
        self.sizes = sizes
        self.errors.append(
            OutOfMemory(step, during, sizes.micro_batch, sizes.accumulation, sizes.completions, continued_from=start)
        )
        if is_main_process():
            write_json(self._file, {**_to_json(sizes), "recoveries": self.errors})

    def _read(self) -> None:
        remedy = "Delete the file to start with the recipe's sizes."
        try:
            stored = from_json(_Stored, read_json(self._file))
        except (OSError, ValueError) as error:
            rule = "the sizes after an out-of-memory error must be complete"
            raise RunError(
                "training.kept_sizes_damaged", rule, place=self._file, value=str(error), remedy=remedy
            ) from error
        sizes = Sizes(stored.micro_batch, stored.accumulation, stored.completions_per_generate)
        if sizes.rows != self.sizes.rows:
            raise RunError(
                "training.kept_sizes_differ",
                f"micro_batch times accumulation must be {self.sizes.rows}, the rows of an optimizer step",
                place=self._file,
                value=f"{sizes.micro_batch} x {sizes.accumulation}",
                remedy=remedy,
            )
        self.sizes, self.errors = sizes, list(stored.recoveries)
        log.info("%s: after an earlier out-of-memory error: %s", self.stage, _describe(sizes))


def advice(recipe: Recipe, stage: str, plan: Mapping[str, Any] | None) -> str:
    """Return the recipe keys that make a row smaller: those from the plan, otherwise all that apply."""
    changes = _computed(stage, plan)
    if changes:
        return f"The plan computed that this fits: set {', '.join(changes)}."
    section = recipe.training.get(stage)
    return f"To make a row smaller, set {', '.join(_keys(recipe, stage, section))}, or use a smaller model."


def _computed(stage: str, plan: Mapping[str, Any] | None) -> list[str]:
    """Return the plan's changes for the largest GPU up to the size of this one that has changes left to make."""
    memory = ((plan or {}).get("memory") or {}).get(stage) or {}
    gpu = ((plan or {}).get("gpu") or {}).get("memory_gb")
    sizes = sorted((int(size) for size in memory.get("fits") or {}), reverse=True)
    for size in sizes:
        if gpu is not None and size > gpu * 1.05:  # a GPU of nominal 24 GB has between 23.6 and 25.8 GB
            continue
        changes = memory["fits"][str(size)].get("changes") or []
        left = [
            change
            for change in changes
            if not change.startswith(("sft.batch_size", "dpo.batch_size", "grpo.micro_batch", "grpo.packing"))
        ]
        if left:
            return left
    return []


def _keys(recipe: Recipe, stage: str, section: Optimisation | None) -> Iterator[str]:
    model = recipe.model
    if section and not section.gradient_checkpointing:
        yield f"{stage}.gradient_checkpointing = true"
    if model.tuning == "full":
        yield 'model.tuning = "lora"'
    elif model.precision not in ("4bit", "auto"):
        yield 'model.precision = "4bit"'
    yield f"images.max_side below {recipe.images.max_side}"
    if stage == "grpo" and recipe.grpo:
        yield f"grpo.max_completion_tokens below {recipe.grpo.max_completion_tokens}"
    if section and section.optimizer != "paged_adamw_8bit":
        yield f'{stage}.optimizer = "paged_adamw_8bit"'
    if model.tuning == "lora" and recipe.lora.r > 1:
        yield f"lora.r below {recipe.lora.r}"
    if recipe.lora.vision:
        yield "lora.vision = false"


def _to_json(sizes: Sizes) -> dict[str, int | None]:
    figures = asdict(sizes)
    completions = figures.pop("completions")
    return {**figures, "completions_per_generate": completions}


def _describe(sizes: Sizes) -> str:
    generated = "" if sizes.completions is None else f", {sizes.completions} completions per generate call"
    return f"micro-batch {sizes.micro_batch}, {sizes.accumulation} passes per step{generated}"


def _memory_in_use() -> str:
    if not torch.cuda.is_available():
        return "on a CPU"
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_allocated()
    return f"{own / 2**30:.1f} GiB held by this process, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
