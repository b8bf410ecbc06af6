"""Evaluate a model on a public benchmark, without a recipe of the user's."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.data.benchmark import Benchmark
from toolkit.data.result import DataResult
from toolkit.data.task import Task
from toolkit.errors import DataError
from toolkit.evaluation.generate import weights_identity
from toolkit.pipeline.existing_run import SILENT, Callbacks
from toolkit.pipeline.run import Stages, run_recipe
from toolkit.pipeline.run_results import RunResults
from toolkit.recipe import Recipe, for_language_models, load_table
from toolkit.recipe.model_kind import is_folder_name
from toolkit.runfolder import check_fingerprints, find_run, is_run, write_json
from toolkit.tasks import TASKS

RECORD = "benchmark.json"
"""File of a run with the name, source and published scores of its benchmark."""

_RUN_SECTIONS = ("model", "lora", "images", "prompt")
"""Sections of a run that its evaluation on a benchmark keeps."""


def find_benchmarks() -> Mapping[str, tuple[Task, Benchmark]]:
    """Return name -> task and benchmark, for all tasks of the package."""
    return {one.name: (task, one) for task in TASKS.values() for one in task.benchmarks}


def benchmark_recipe(
    benchmark: str, data: Path, model: str, settings: Sequence[str] = (), *, name: str | None = None
) -> Recipe:
    """Return the recipe that evaluates a model on a benchmark.

    Args:
        benchmark: a name of ``find_benchmarks``.
        data: the folder of its published files.
        model: ``tiny``, a Hub name, a folder with weights or an adapter, or a run, whose prompt and images are kept.
        settings: ``--set`` values.
        name: name of the run. Default: benchmark and model.

    Raises:
        DataError: the benchmark is unknown, or the folder has none of its files.
        RecipeError: a setting is invalid.
    """
    known = find_benchmarks()
    if benchmark not in known:
        rule, remedy = "must be a known benchmark", f"Choose one of: {', '.join(known)}."
        raise DataError("evaluate.benchmark_unknown", rule, place="--benchmark", value=benchmark, remedy=remedy)
    task, found = known[benchmark]
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-.") or "model"
    table = {
        "run": {"name": name or f"{benchmark}-{short}"[:100]},
        **_model_sections(model),
        "evaluate": {"split": "test"},
    }
    rows = {"task": task.name, **found.find(data.absolute())}
    table["data"] = rows | {task.name: _task_settings(model, task)}
    return load_table(table, f"--benchmark {benchmark}", settings, tasks=TASKS, files=True)


def evaluate_benchmark(benchmark: str, recipe: Recipe, stages: Stages, *, callbacks: Callbacks = SILENT) -> RunResults:
    """Evaluate a model, as the first evaluation of a run. The same call resumes, or returns the finished results.

    Args:
        benchmark: the name of the benchmark.
        recipe: that of ``benchmark_recipe``.
        stages: the functions that do the work.
        callbacks: progress and signals.

    Raises:
        ToolkitError: as in ``run_recipe``, or the weights in the folder of the model changed.
    """
    progress, notify = callbacks
    weights = {"weights": _weights_digest(recipe)}
    if is_run(recipe.run_folder):
        # Without this, a finished run would return its results as those of other weights.
        check_fingerprints(find_run(recipe.run_folder), weights)
    results = run_recipe(recipe, stages, progress=progress, notify=notify)
    check_fingerprints(results.run, weights)
    found = find_benchmarks()[benchmark][1]
    published = [asdict(one) for one in found.published]
    record = {"name": found.name, "source": found.source, "published": published}
    write_json(results.run.path / RECORD, record)
    return results


def _weights_digest(recipe: Recipe) -> str:
    """Return a digest of the files of the model and of its adapter, if these are folders."""
    found = []
    for name in (recipe.model.name, str(recipe.model.adapter or "")):
        path = Path(name).expanduser()
        weights = find_run(path).trained_weights() if name and is_run(path) else path
        if name and weights is not None and weights.is_dir():
            found.append(weights_identity(weights))
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def _model_sections(model: str) -> dict[str, Any]:
    """Return the sections that load the model: those of its run, or [model]."""
    path = Path(model).expanduser()
    if is_run(path):
        recipe = _recipe_of(path)
        sections = recipe.model_dump(mode="json", exclude_none=True, include=set(_RUN_SECTIONS))
        if find_run(path).trained_weights() is not None:
            # Nothing is trained here. The adapter may also be full weights.
            sections["model"] |= {"adapter": str(path.absolute()), "tuning": "lora"}
        return sections
    if not is_folder_name(model) and not path.is_dir():
        return {"model": {"name": model}}
    base = _adapter_base(path)
    folder = str(path.absolute())
    return {"model": {"name": base, "adapter": folder} if base else {"name": folder}}


def _task_settings(model: str, task: Task) -> dict[str, Any]:
    """Return the settings of the task: those that a run of the same task was trained with, otherwise for zero-shot."""
    path = Path(model).expanduser()
    if not is_run(path) or _recipe_of(path).dataset.task != task.name:
        return dict(task.zero_shot)
    run = find_run(path)
    found = run.result("data", DataResult).found if run.is_done("data") else {}
    settings: dict[str, Any] = _recipe_of(path).settings.model_dump(mode="json", exclude_none=True)
    return settings | {name: value for name, value in found.items() if name in settings}


def _recipe_of(path: Path) -> Recipe:
    return for_language_models(find_run(path).recipe(TASKS), "toolkit evaluate --benchmark")


def _adapter_base(path: Path) -> str | None:
    """Return the base model of a folder with an adapter, or None for any other folder."""
    if not (path / "adapter_config.json").is_file():
        return None
    from toolkit import tiny
    from toolkit.models.adapter_config import read_adapter_config

    base = read_adapter_config(path).base_model_name_or_path or ""
    return "tiny" if base and Path(base) == tiny.FOLDER else base
