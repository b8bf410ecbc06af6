"""`toolkit evaluate --benchmark`: evaluate a model on a public benchmark, and print published scores beside it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from toolkit.cli.output import print_json


def run_benchmark(
    benchmark: str | None,
    data: Path | None,
    model: str | None,
    settings: Sequence[str],
    others: tuple[Path | None, str | None],
    *,
    as_json: bool,
) -> None:
    """Evaluate a model on a benchmark and print the table of results.

    Args:
        benchmark: the name of the benchmark.
        data: the folder of its published files.
        model: tiny, a Hub name, a folder of weights, or a run.
        settings: ``--set`` values.
        others: the argument RUN, which must be missing, and the name of the run.
        as_json: print one JSON object.

    Raises:
        typer.BadParameter: an option is missing, or the benchmark is unknown.
    """
    run_folder, name = others
    if benchmark is None and data is None:
        raise typer.BadParameter("give a run, or --benchmark with --data and --model", param_hint="RUN")
    if run_folder is not None:
        raise typer.BadParameter("must not be used with --benchmark. Give it as --model", param_hint="RUN")
    from toolkit.pipeline.benchmark import find_benchmarks

    known = find_benchmarks()
    if benchmark is None or benchmark not in known:
        names = "".join(f"\n  {one}: {task.name}, {found.source}" for one, (task, found) in known.items())
        raise typer.BadParameter(f"must be one of the following (got {benchmark!r}):{names}", param_hint="--benchmark")
    if data is None or model is None:
        raise typer.BadParameter("must be used with --data and --model", param_hint="--benchmark")
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.evaluation.results import BEFORE, LABELS
    from toolkit.pipeline.benchmark import benchmark_recipe, evaluate_benchmark
    from toolkit.pipeline.stages import STAGES

    recipe = benchmark_recipe(benchmark, data, model, settings, name=name)
    with show_progress() as callbacks:
        results = evaluate_benchmark(benchmark, recipe, STAGES, callbacks=callbacks)
    rows = tuple(replace(row, label=model) if row.label == LABELS[BEFORE] else row for row in results.rows)
    results, published = replace(results, rows=rows), known[benchmark][1].published
    if as_json:
        print_json(results, published=published)
    else:
        show.results(results)
        show.published(published)
