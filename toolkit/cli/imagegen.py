"""`toolkit run` of a recipe with [imagegen], and the tables that the commands print about its run."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from toolkit.cli.output import print_json
from toolkit.runfolder.usage import compute_line

if TYPE_CHECKING:
    from toolkit.imagegen.evaluation.statistics import Figure
    from toolkit.imagegen.results import ArmRow, ImagegenResult
    from toolkit.recipe import Recipe
    from toolkit.runfolder import RunFolder
    from toolkit.scoring.statistics import Estimate, Paired

WIDTH = 150
"""Columns of tables that are not printed to a terminal."""


def run_recipe(recipe: "Recipe", *, fresh: bool, as_json: bool) -> None:
    """Run a recipe with [imagegen] and print its tables."""
    from toolkit.cli.plan import short_lines
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.imagegen import run_imagegen
    from toolkit.pipeline.plan import plan_run

    with show_progress() as (progress, notify):
        planned = plan_run(recipe, fresh=fresh, describe=short_lines)
        run, result = run_imagegen(recipe, fresh=fresh, plan=planned, progress=progress, notify=notify)
    _show(run, result, as_json=as_json)


def dry_run_recipe(recipe: "Recipe", *, as_json: bool) -> None:
    """Run the dry run of a recipe with [imagegen], and print its tables."""
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.imagegen_dry_run import dry_run_imagegen

    with show_progress() as (progress, notify):
        run, result = dry_run_imagegen(recipe, progress=progress, notify=notify)
    _show(run, result, as_json=as_json)
    if not as_json:
        print("the dry run passed: every stage works with tiny random networks, and the figures above have no meaning")


def _show(run: "RunFolder", result: "ImagegenResult", *, as_json: bool) -> None:
    if as_json:
        print_json(result, folder=run.path)
    else:
        show(run, result)


def show(run: "RunFolder", result: "ImagegenResult") -> None:
    """Print the table of results, the agreement of the scorers with experts, and the rounds of ddpo."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_arms(result))
    console.print(_images(result))
    if result.scorers is not None:
        console.print(_scorers(result))
    if result.ddpo is not None:
        console.print(_rounds(result))
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"run folder: {run.path}", markup=False)
    used = compute_line(run.compute_file)
    if used is not None:
        console.print(f"compute: {used}", markup=False)
    if run.report_file.is_file():
        console.print(f"report: {run.report_file}", markup=False, soft_wrap=True)


def _arms(result: "ImagegenResult") -> Table:
    n = result.rows[0].judge.n if result.rows else 0
    table = Table(title=f"judge score of {n:,} images of each arm (same prompts and noise), 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    oracle = any(row.oracle for row in result.rows)
    for name in ("judge", "to base", "to control", "judge passes", "agreement", *(["oracle"] if oracle else [])):
        table.add_column(name, justify="right", overflow="fold")
    for row in result.rows:
        cells = [estimate(row.judge), _paired(row.to_base), _paired(row.to_control)]
        cells += [estimate(row.judge_pass_rate), estimate(row.agreement)]
        table.add_row(_label(row, result), *cells, *([estimate(row.oracle)] if oracle else []))
    return table


def _label(row: "ArmRow", result: "ImagegenResult") -> str:
    return f"{row.label} (round {result.ddpo.best_round})" if row.arm == "ddpo" and result.ddpo else row.label


def _images(result: "ImagegenResult") -> Table:
    setting = result.rows[0].diversity.ms_ssim_setting if result.rows else ""
    table = Table(title="images of each arm against reference images (rated well)", caption=f"MS-SSIM: {setting}")
    table.add_column("", overflow="fold")
    for name in ("KID", "FID", "MS-SSIM", "diversity", "nearest (median)", "below the copy floor"):
        table.add_column(name, justify="right", overflow="fold")
    for row in result.rows:
        found = row.distribution
        cells = [
            _figure(found.kid),
            _figure(found.fid),
            _figure(row.diversity.ms_ssim),
            _figure(row.diversity.distance),
        ]
        table.add_row(row.label, *cells, _number(row.copies.generated_median), _figure(row.copies.below_floor))
    if result.rows and result.real_diversity is not None:
        found, real = result.rows[0].distribution, result.real_diversity
        cells = [_figure(found.real_kid), _figure(found.real_fid), _figure(real.ms_ssim), _figure(real.distance)]
        copies = result.rows[0].copies
        table.add_row("reference images", *cells, _number(copies.real_median), _number(copies.quantile))
    return table


def _scorers(result: "ImagegenResult") -> Table:
    table = Table(title="scorers on held-out ratings")
    for name in ("", "Spearman", "kappa", "AUROC", "MAE (of a constant)", "calibration error", "threshold: precision"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    scorers = result.scorers
    if scorers is None:
        return table
    chosen = (
        ("selector", scorers.selector.overall, scorers.selector_threshold),
        ("judge", scorers.judge.overall, scorers.judge_threshold),
    )
    for name, found, threshold in chosen:
        cells = [_figure(found.spearman), _figure(found.kappa), _figure(found.auroc)]
        cells += [f"{_figure(found.mae)} ({_figure(found.baseline_mae, interval=False)})", _figure(found.ece)]
        table.add_row(name, *cells, f"{threshold.value:.3f}: {estimate(threshold.precision)}")
    policy = scorers.policy.overall
    table.add_row("policy (prompts)", "", "", _figure(policy.auroc), "", "", "")
    return table


def _rounds(result: "ImagegenResult") -> Table:
    table = Table(title="rounds of ddpo (the judge's scores are on other noise than the table's)")
    for name in ("round", "judge", "selector", "passed", "reward", "diversity", "KL", "ratio - 1", "guards that fired"):
        table.add_column(name, justify="left" if name.startswith("guards") else "right", overflow="fold")
    for one in result.ddpo.rounds if result.ddpo else ():
        update = one.update
        fired = ", ".join(verdict.guard for verdict in one.verdicts if verdict.status == "fired")
        cells = [estimate(one.judge), estimate(one.selector), _number(one.passed)]
        cells += [_number(update.reward_mean if update else None), _number(one.diversity)]
        cells += [_number(update.kl_to_base if update else None)]
        table.add_row(str(one.round), *cells, f"{update.first_ratio_deviation:.1e}" if update else "", fired)
    return table


def estimate(found: "Estimate | None") -> str:
    """Return an estimate with its interval."""
    if found is None or found.value is None:
        return "-"
    return f"{found.value:.3f}{_interval(found)}"


def _interval(found: "Estimate") -> str:
    return "" if found.low is None or found.high is None else f" [{found.low:.3f} to {found.high:.3f}]"


def _paired(found: "Paired | None") -> str:
    if found is None or found.difference.value is None:
        return ""
    change = found.difference
    interval = "" if change.low is None or change.high is None else f" [{change.low:+.3f} to {change.high:+.3f}]"
    return f"{change.value:+.3f}{interval}"


def _figure(found: "Figure", *, interval: bool = True) -> str:
    if found.value is None:
        return found.reason or "-"
    return estimate(found.estimate) if interval else f"{found.value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
