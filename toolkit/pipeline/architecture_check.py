"""The check on the real architecture: one batch of every stage before a run, on a small random model.

The model has the architecture of the recipe's model (``toolkit.models.reduced_model``) and its own processor. The rows
are those of the recipe. Stages, trainers and exports are those of a run. A process of its own on the CPU writes
everything to a temporary folder, so that random state, GPU and the import of Unsloth stay as they are.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from toolkit.data.sample_set import SampleSet
from toolkit.errors import ImageError, ModelError, ToolkitError
from toolkit.evaluation.results import evaluation_stage
from toolkit.evaluation.stage_context import Context
from toolkit.identifiers import without_names
from toolkit.images.store import read_image_header
from toolkit.models.llamacpp import formats_of
from toolkit.pipeline.dry_run import limit_rows
from toolkit.pipeline.prepare_data import prepare
from toolkit.pipeline.run import StageCall, run_stage, stage_calls
from toolkit.pipeline.stages import STAGES
from toolkit.planning.architecture_check import (
    ArchitectureCheck,
    Failure,
    check_facts,
    files_folder,
    find_check,
    is_small,
    not_tried,
    reason_not_tried,
    save_check,
)
from toolkit.recipe import Evaluate, Export, Recipe
from toolkit.recipe.load import merge, restore_recipe
from toolkit.runfolder import EXPORT, TRAINING_STAGES, StopRequest, no_progress, start_run
from toolkit.runfolder.usage import recording
from toolkit.scoring.regions.coordinates import find_family
from toolkit.tasks import TASKS

log = logging.getLogger(__name__)

ROWS: Mapping[str, int] = {"train": 64, "validation": 8, "test": 8}
"""Split -> rows from which those of the check are chosen."""
SYNTHETIC_ROWS: Mapping[str, int] = {"train": 4, "validation": 4, "test": 4}
"""Split -> synthetic rows that are generated, which are alike. One of 1024 pixels takes half a second."""
TRIED = 4
"""Training rows of the check."""
PER_PASS = 2
"""Maximum number of rows of a forward pass, and of prompts of an optimizer step of GRPO."""
COMPLETION_TOKENS = 8
TIMEOUT = 1800
"""Most seconds of the process of the check, which takes about a minute. A library could wait for ever."""
HIDDEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "ACCELERATE_", "TORCHELASTIC_")
"""Beginnings of the variables of a distributed run, which the process of the check must not join."""

Changes = dict[str, Any]


def known_check(recipe: Recipe) -> ArchitectureCheck | None:
    """Return the result of an earlier check, or why there is none. None: the shipped tiny model needs no check."""
    if recipe.model.name == "tiny":
        return None
    if reason := reason_not_tried(recipe):
        return not_tried(reason)
    return find_check(_facts(recipe)) or not_tried("`toolkit plan RECIPE --deep` trains one batch of every stage")


def check_before_run(recipe: Recipe) -> ArchitectureCheck | None:
    """Return the result of the check that `toolkit run` makes before its first stage. None: the model needs no check.

    A model whose weights are small needs none, because its stages reach an error as soon.
    """
    if recipe.model.name == "tiny" or is_small(recipe):
        return None
    return check_architecture(recipe)


def check_architecture(recipe: Recipe) -> ArchitectureCheck:
    """Return the result of the check, from the cache if nothing that decides it has changed."""
    if reason := reason_not_tried(recipe):
        return not_tried(reason)
    facts = _facts(recipe)
    if (known := find_check(facts)) is not None:
        return known
    log.info("plan: trying one batch of every stage on a small random model of the architecture of %s", _name(recipe))
    found = _in_other_process(recipe)
    save_check(facts, found)
    return found


def _name(recipe: Recipe) -> str:
    return Path(recipe.model.name).name


def _facts(recipe: Recipe) -> list[object]:
    folder = files_folder(recipe)
    return check_facts(recipe, derive_check(recipe, Path("check")), folder) if folder is not None else []


def derive_check(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe of the check: the reduced model in ``folder``, few rows, and few optimizer steps."""
    changes = {
        "run.name": "check",
        "run.folder": folder / "runs",
        "run.report_to": (),
        "run.tracker_examples": 0,
        "images.disk_cache": False,
        **_model(recipe, folder / "model"),
        **limit_rows(recipe, ROWS if recipe.dataset.synthetic is None else SYNTHETIC_ROWS),
        **_training(recipe),
    }
    if recipe.validation is not None:  # one for each stage, after its last step
        changes |= {"validation.every_steps": TRIED, "validation.limit": TRIED, "validation.metric": "auto"}
        changes |= {"validation.patience": None, "validation.min_improvement": 0.0}
        changes |= {"run.log_steps": 1}
    if recipe.evaluate is not None:
        tasks = {"evaluate.max_tasks": 1} if recipe.task.has_agent_memory else {"evaluate.limit": TRIED}
        tokens = min(recipe.evaluate.max_completion_tokens, COMPLETION_TOKENS)
        changes |= {"evaluate.before": True, "evaluate.max_completion_tokens": tokens, "evaluate.bootstrap": 100}
        changes |= {"evaluate.batch_size": min(recipe.evaluate.batch_size, TRIED), **tasks}
    if recipe.export is not None:
        changes |= {"export.to": formats_of(recipe.export), "export.optional": (), "export.quant": ("f16",)}
        changes |= {"export.verify": 0, "export.allow_dequantized": False}
    settings = [(tuple(key.split(".")), value) for key, value in changes.items()]
    return type(recipe).model_validate(merge(recipe.model_dump(), settings))


def _model(recipe: Recipe, folder: Path) -> Changes:
    attention = recipe.model.attention
    return {
        "model.name": str(folder),
        "model.family": find_family(recipe.model.name, recipe.model.family),
        "model.revision": None,
        "model.backend": "hf",
        "model.precision": "32bit",
        "model.adapter": None,
        "model.attention": "auto" if attention == "flash_attention_2" else attention,
    }


def _training(recipe: Recipe) -> Changes:
    """Return few steps for each training stage. The sizes of forward passes stay if they are small."""
    changes: Changes = {}
    for name in TRAINING_STAGES:
        section = getattr(recipe, name)
        if section is None:
            continue
        changes |= {f"{name}.optimizer": "adamw_torch", f"{name}.max_steps": 1}
        changes |= {f"{name}.warmup_steps": 0, f"{name}.warmup_fraction": 0.0}
        if "batch_size" in type(section).model_fields:
            size = min(section.batch_size, PER_PASS)
            changes |= {f"{name}.batch_size": size, f"{name}.accumulation": TRIED // size}
    if (grpo := recipe.grpo) is not None:
        prompts, generations = min(grpo.prompts_per_step, PER_PASS), min(grpo.generations, 2)
        changes |= {
            "grpo.max_steps": TRIED // prompts,
            "grpo.rollouts": "transformers",
            "grpo.prompts_per_step": prompts,
            "grpo.generations": generations,
            "grpo.micro_batch": min(grpo.micro_batch, prompts * generations) if grpo.micro_batch < 3 else generations,
            "grpo.max_completion_tokens": min(grpo.max_completion_tokens, COMPLETION_TOKENS),
            "grpo.probe_prompts": 0,
            "grpo.resample": 0,
        }
    return changes


def varied_rows(samples: SampleSet, count: int, policy: Any) -> SampleSet:
    """Return ``count`` rows that differ: with the most and fewest images, and with the widest and tallest one."""
    several = [len(sample.images) for sample in samples]
    ratios = [_ratio(sample, policy) for sample in samples]
    order = [int(np.argmax(several)), int(np.argmax(ratios)), int(np.argmin(ratios)), int(np.argmin(several))]
    chosen = [*dict.fromkeys([*order, *range(len(samples))])][:count]
    return samples.take(samples.rows[np.array(chosen, np.int64)])


def _ratio(sample: Any, policy: Any) -> float:
    """Return the width of the first image divided by its height. 1 without an image that can be read."""
    try:
        width, height = read_image_header(sample.images[0], policy).size if sample.images else (1, 1)
    except ImageError:
        return 1.0
    return float(width / height)


# The process of the check.


def _in_other_process(recipe: Recipe) -> ArchitectureCheck:
    """Make the check in another process, and return its result, or how the process ended without one."""
    request = {"task": recipe.dataset.task, "recipe": recipe.model_dump(mode="json")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-P", "-m", "toolkit.pipeline.architecture_check"]  # -P: no module of the working folder
    try:
        child = subprocess.Popen(command, env=environment, text=True, encoding="utf-8", **pipes)  # type: ignore[call-overload]
    except OSError as error:  # too many processes, or too little memory for one more
        return _ended(f"the process of the check did not start: {error.strerror}")
    with child:
        try:
            output, errors = child.communicate(json.dumps(request), timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            return _ended(f"the process of the check was stopped after {TIMEOUT} s")
        except BaseException:
            child.terminate()  # it removes its temporary folder
            raise
    return _read_result(child.returncode, output, errors)


def _read_result(exit_code: int, output: str, errors: str) -> ArchitectureCheck:
    """Return the result that the process of the check has written, or how it ended without one."""
    if exit_code < 0:  # a signal, as of the operating system if memory is short
        return _ended(f"the process of the check was killed by signal {-exit_code}")
    if exit_code > 0:
        last = [line for line in errors.splitlines() if line.strip()][-1:]
        return _ended(f"the process of the check failed: {without_names(''.join(last))[:200]}")
    try:
        found: ArchitectureCheck = TypeAdapter(ArchitectureCheck).validate_json(output)
    except ValidationError:  # code of the recipe can end the process
        return _ended("the process of the check ended without a result")
    return found


def _ended(reason: str) -> ArchitectureCheck:
    return ArchitectureCheck(ended={"architecture": reason})


def main() -> None:
    """Make the check that standard input requests, and write its result to standard output."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    request = json.load(sys.stdin)
    logging.getLogger("toolkit").setLevel(logging.ERROR)
    recipe = restore_recipe(TASKS, request["task"], request["recipe"])
    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        found = make_check(recipe, Path(folder))
    with os.fdopen(output, "w", encoding="utf-8") as stream:
        json.dump(asdict(found), stream)


def make_check(recipe: Recipe, folder: Path) -> ArchitectureCheck:
    """Make the check in this process. ``folder`` gets the model and the run."""
    from toolkit.models.processor import open_processor
    from toolkit.models.reduced_model import write_reduced

    source, begun = files_folder(recipe), time.monotonic()
    if source is None:
        return not_tried("not downloaded")
    try:
        reduced = write_reduced(source, folder / "model", open_processor(recipe.model, local=True))
    except ModelError as error:
        if error.code == "model.reduced_too_large":
            return not_tried(str(error))
        return ArchitectureCheck(failures=(_failure("model", error),))
    tried = {"model": time.monotonic() - begun}
    try:
        found = _try_parts(derive_check(recipe, folder))
    except ToolkitError as error:  # The plan and the run report errors of rows and images.
        return not_tried(str(error))
    return replace(found, tried={**tried, **found.tried}, parameters=reduced.parameters)


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of the check: its name, and its work with the results of the earlier parts."""

    name: str
    work: Callable[[Context, Any], object]


def _try_parts(recipe: Recipe) -> ArchitectureCheck:
    """Try each part on a few rows. A failed one does not prevent the next one.

    Raises:
        ToolkitError: rows or images cannot be used.
    """
    tried: dict[str, float] = {}
    failures: list[Failure] = []
    not_tried: dict[str, str] = {}
    ended: dict[str, str] = {}
    with start_run(recipe, fresh=True) as run:
        data, images = prepare(recipe, run, no_progress)
        if len(data.train) and any(getattr(recipe, name) is not None for name in TRAINING_STAGES):
            data = replace(data, train=varied_rows(data.train, TRIED, images.policy))
        context = Context(_with_short_completions(recipe), run, data, images, StopRequest())
        with recording(run, recipe.run, "run") as recorder:
            for part in _parts(recipe):
                if part.name in (EXPORT, "gguf") and not any(name in tried for name in TRAINING_STAGES):
                    not_tried[part.name] = "not tried: no training stage succeeded"
                    continue
                begun = time.monotonic()
                try:
                    part.work(context, recorder)
                except MemoryError:
                    ended[part.name] = "too little memory"
                except Exception as error:  # noqa: BLE001 - a library raises anything for an unsupported architecture
                    failures.append(_failure(part.name, error))
                else:
                    tried[part.name] = time.monotonic() - begun
    return ArchitectureCheck(tried, tuple(failures), not_tried, ended)


def _with_short_completions(recipe: Recipe) -> Recipe:
    """Return the recipe with short completions of a validation, whose length is that of [evaluate] or its default."""
    if recipe.evaluate is not None:
        return recipe
    return recipe.model_copy(update={"evaluate": Evaluate(max_completion_tokens=COMPLETION_TOKENS, batch_size=TRIED)})


def _parts(recipe: Recipe) -> Iterator[_Part]:
    """Yield one evaluation, the training stages, the export without GGUF, and the GGUF."""
    evaluated = False
    for call in stage_calls(recipe, STAGES):
        if call.name.startswith(evaluation_stage("")):
            if not evaluated:
                yield _Part("evaluate", _stage(call))
            evaluated = True
        elif call.name != EXPORT:
            yield _Part(call.name, _stage(call))
    if recipe.export is not None:
        formats = [name for name in recipe.export.to if name != "gguf"] or ["merged"]
        yield _Part(EXPORT, _export(formats))
        if "gguf" in recipe.export.to:
            yield _Part("gguf", _export(["gguf"]))


def _stage(call: StageCall[Any]) -> Callable[[Context, Any], object]:
    return lambda context, recorder: run_stage(call, context, recorder)


def _export(formats: Sequence[str]) -> Callable[[Context, Any], object]:
    """Return an export of these formats. Merged weights are loaded again."""

    def work(context: Context, recorder: Any) -> None:
        section = Export(to=tuple(formats), quant=("f16",), verify=0)
        changed = replace(context, recipe=context.recipe.model_copy(update={"export": section}))
        result = run_stage(StageCall(EXPORT, STAGES.export), changed, recorder)
        if "merged" in formats:
            from toolkit.models.loading import load_model

            merged = result.merged
            if merged is not None:
                load_model(str(context.run.path / merged.folder), context.recipe.model)

    return work


def _failure(part: str, error: Exception) -> Failure:
    if isinstance(error, ToolkitError):
        value = f"{error.code}: {error.problem.to_json()['value'] or error.place}"
        return Failure(part, error.rule, value, error.remedy)
    lines = without_names(str(error)).strip().splitlines() or [""]
    remedy = f"Use another model, or remove this part. Report the error with the type of the model ({part})."
    return Failure(part, "no library must raise an error", f"{type(error).__name__}: {lines[0][:300]}", remedy)


if __name__ == "__main__":
    main()
