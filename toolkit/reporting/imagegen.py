"""The sections of an image generator: judge scores, scorers, rounds, and images of each prompt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.reporting.blocks import Block, EmbeddedImage, ImageGrid, Plot, Plots, Section, Table, Text
from toolkit.reporting.embedding import ImageBudget
from toolkit.reporting.figures import NOTHING, number
from toolkit.reporting.finished_run import FinishedRun
from toolkit.reporting.plots import ForestRow, Series, forest, lines

if TYPE_CHECKING:  # imagegen imports torch
    from toolkit.imagegen.evaluation.statistics import Figure
    from toolkit.imagegen.results import ArmRow, ImagegenResult
    from toolkit.imagegen.training.ddpo_stage import RoundResult
    from toolkit.scoring.statistics import Estimate

MAX_ROUNDS = 9
"""Rounds in a grid. More are thinned evenly, with the first and the last one."""

ROUND = "round-"
"""Prefix of the samples of a round."""


def imagegen_sections(run: FinishedRun, budget: ImageBudget, *, images: bool) -> list[Section]:
    """Return the sections of a run of an image generator. ``images``: show generated images."""
    result = run.imagegen
    if result is None:
        return []
    found = [_results(result), _rounds(result), _scorers(result), _data(result)]
    return [section for section in (*found, _grids(run, budget) if images else None) if section is not None]


def _results(result: "ImagegenResult") -> Section | None:
    if not result.rows:
        return None
    bars = [ForestRow(row.label, row.judge, quiet=number_of == 0) for number_of, row in enumerate(result.rows)]
    cells = [(bar.label, *_of(bar.estimate)) for bar in bars]
    title = "judge score"
    plots = [Plot(title, forest(title, bars, "judge score", scale=1), Table.of(("arm", *_HEAD), cells))]
    pairs = [
        ForestRow(f"{row.arm} – {other}", paired.difference)
        for row in result.rows
        for other, paired in (("base", row.to_base), ("control", row.to_control))
        if paired is not None
    ]
    if pairs:
        listed = [(pair.label, *_of(pair.estimate)) for pair in pairs]
        drawing = forest("differences of judge scores", pairs, "difference of judge scores", zero=True, scale=1)
        plots.append(Plot("paired differences", drawing, Table.of(("difference", *_HEAD), listed)))
    about = Text(
        "Every arm has the same prompts and noise. Intervals are 95 % bootstraps over prompts. Selector and agreement "
        "are part of the reward, so they are no evidence."
    )
    notes = [Text(f"{note}.") for note in result.notes]
    return Section("results", "Results", (about, Plots(tuple(plots)), _arms(result), _images(result), *notes))


_HEAD = ("value", "95 % interval", "n")


def _of(found: "Estimate | None") -> tuple[str, str, str]:
    """Return the value, the interval and n."""
    if found is None or found.value is None:
        return (NOTHING, NOTHING, NOTHING if found is None else f"{found.n:,}")
    interval = NOTHING if found.low is None or found.high is None else f"{_shown(found.low)} to {_shown(found.high)}"
    return (_shown(found.value), interval, f"{found.n:,}")


def _shown(value: float) -> str:
    """Return a number with three decimals, or a large one without."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def _estimate(found: "Estimate | None") -> str:
    value, interval, _ = _of(found)
    return value if interval == NOTHING else f"{value} ({interval})"


def _figure(found: "Figure") -> str:
    return found.reason or NOTHING if found.value is None else _estimate(found.estimate)


def _arms(result: "ImagegenResult") -> Table:
    columns: dict[str, Callable[[ArmRow], Estimate | None]] = {
        "judge": lambda row: row.judge,
        "judge passes": lambda row: row.judge_pass_rate,
        "selector": lambda row: row.selector,
        "agreement": lambda row: row.agreement,
        "oracle": lambda row: row.oracle,
    }
    shown = {name: get for name, get in columns.items() if any(get(row) is not None for row in result.rows)}
    rows = [(row.label, *(_estimate(get(row)) for get in shown.values()), f"{row.judge.n:,}") for row in result.rows]
    return Table.of(("arm", *shown, "n"), rows, "Scores")


def _images(result: "ImagegenResult") -> Table:
    head = ("arm", "KID", "FID", "MS-SSIM", "diversity", "nearest (median)", "below the copy floor")
    rows = []
    for row in result.rows:
        figures = (row.distribution.kid, row.distribution.fid, row.diversity.ms_ssim, row.diversity.distance)
        copies = (number(row.copies.generated_median), _figure(row.copies.below_floor))
        rows.append((row.label, *map(_figure, figures), *copies))
    if result.real_diversity is not None:
        first, real = result.rows[0], result.real_diversity
        figures = (first.distribution.real_kid, first.distribution.real_fid, real.ms_ssim, real.distance)
        copies = (number(first.copies.real_median), number(first.copies.quantile))
        rows.append(("reference images", *map(_figure, figures), *copies))
    return Table.of(head, rows, "Images of each arm against reference images")


def _rounds(result: "ImagegenResult") -> Section | None:
    if result.ddpo is None:
        return None
    rounds = result.ddpo.rounds
    plots = tuple(_round_plots(rounds))
    fired = [
        (str(one.round), ", ".join(verdict.guard for verdict in one.verdicts if verdict.status == "fired"))
        for one in rounds
    ]
    table = Table.of(("round", "guards that fired"), [row for row in fired if row[1]], names=2)
    blocks: list[Block] = [Text(f"The best round is {result.ddpo.best_round} of {rounds[-1].round}."), Plots(plots)]
    return Section("rounds", "Rounds of ddpo", (*blocks, *([table] if table.rows else [])))


def _round_plots(rounds: "tuple[RoundResult, ...]") -> Iterator[Plot]:
    for title, scores in (
        ("judge score", [one.judge for one in rounds]),
        ("selector", [one.selector for one in rounds]),
    ):
        known = [(one.round, score) for one, score in zip(rounds, scores, strict=True) if score.value is not None]
        series = Series(
            title,
            [step for step, _ in known],
            [score.value or 0.0 for _, score in known],
            [_end(score.low, score) for _, score in known],
            [_end(score.high, score) for _, score in known],
        )
        cells = [(str(step), *_of(score)) for step, score in known]
        yield Plot(f"{title} with 95 % interval", lines(title, [series], "round"), Table.of(("round", *_HEAD), cells))
    values: dict[str, list[tuple[int, float | None]]] = {
        "reward": [(one.round, one.update.reward_mean if one.update else None) for one in rounds],
        "passed by the selector": [(one.round, one.passed) for one in rounds],
        "diversity": [(one.round, one.diversity) for one in rounds],
        "KL divergence to the base": [(one.round, one.update.kl_to_base if one.update else None) for one in rounds],
    }
    for title, found in values.items():
        known_values = [(step, value) for step, value in found if value is not None]
        if known_values:
            series = Series(title, [step for step, _ in known_values], [value for _, value in known_values])
            cells_of = [(str(step), number(value)) for step, value in known_values]
            yield Plot(title, lines(title, [series], "round"), Table.of(("round", title), cells_of))


def _end(end: float | None, score: "Estimate") -> float:
    return end if end is not None else score.value or 0.0


def _scorers(result: "ImagegenResult") -> Section | None:
    scorers = result.scorers
    if scorers is None:
        return None
    head = ("scorer", "Spearman", "kappa", "AUROC", "MAE", "MAE of a constant", "calibration error", "precision")
    rows = []
    for name, found, threshold in (
        ("selector", scorers.selector.overall, scorers.selector_threshold),
        ("judge", scorers.judge.overall, scorers.judge_threshold),
    ):
        figures = (found.spearman, found.kappa, found.auroc, found.mae, found.baseline_mae, found.ece)
        precision = f"{_estimate(threshold.precision)} from {threshold.value:.3f}"
        rows.append((name, *map(_figure, figures), precision))
    rows.append(("policy (prompts)", *[NOTHING] * 2, _figure(scorers.policy.overall.auroc), *[NOTHING] * 4))
    return Section("scorers", "Scorers on held-out ratings", (Table.of(head, rows),))


def _data(result: "ImagegenResult") -> Section | None:
    ratings = result.ratings
    if ratings is None:
        return None
    rows = [
        (name, f"{one.images:,}", f"{one.ratings:,}", f"{one.groups:,}", ", ".join(map(str, one.levels)))
        for name, one in ratings.splits.items()
    ]
    head = ("split", "images", "ratings", "groups", "ratings by level, worst first")
    left_out = sum(one.count for one in ratings.dropped)
    about = f"{ratings.rows:,} rows were read, {left_out:,} were left out. No group is in two splits."
    return Section("ratings", "Ratings", (Text(about), Table.of(head, rows)))


def _grids(run: FinishedRun, budget: ImageBudget) -> Section | None:
    from toolkit.imagegen.results import LABELS
    from toolkit.imagegen.samples import read_samples

    arms = {arm: read_samples(run.folder, arm) for arm in LABELS}
    tables = {arm: found["table"] for arm, found in arms.items() if "table" in found}
    rounds = {name.removeprefix(ROUND).lstrip("0") or "0": one for name, one in arms["ddpo"].items() if ROUND in name}
    names = list(rounds)
    if len(names) > MAX_ROUNDS:
        names = [names[place * (len(names) - 1) // (MAX_ROUNDS - 1)] for place in range(MAX_ROUNDS)]
    blocks: list[Block] = []
    if tables:
        blocks.append(_grid({LABELS[arm]: one for arm, one in tables.items()}, "Arms", budget))
    if rounds:
        blocks.append(_grid({f"round {name}": rounds[name] for name in names}, "Rounds of ddpo", budget))
    if not blocks:
        return None
    about = Text("The images of a row have the same prompt and noise.")
    return Section("images", "Generated images", (about, *blocks))


def _grid(columns: Mapping[str, Sequence[tuple[str, Any]]], caption: str, budget: ImageBudget) -> ImageGrid:
    first = next(iter(columns.values()))
    rows = []
    for place, (prompt, _) in enumerate(first):
        images = [
            budget.encode(one[place][1])
            if len(one) > place and one[place][0] == prompt
            else EmbeddedImage("", reason="–")
            for one in columns.values()
        ]
        rows.append((prompt, tuple(images)))
    return ImageGrid(tuple(columns), tuple(rows), caption)
