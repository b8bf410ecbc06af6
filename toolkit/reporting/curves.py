"""The section of training: the logged figures of each stage over its optimizer steps, and its validations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from toolkit.reporting.blocks import Block, Plot, Plots, Section, Table, Text
from toolkit.reporting.figures import number
from toolkit.reporting.finished_run import FinishedRun, TrainingResult
from toolkit.reporting.plots import Series, lines
from toolkit.runfolder import Record

STEP = "optimizer step"
"""The axis of a training stage. The stages of an image generator log epochs or rounds."""

MEAN, STD = "rewards/{}/mean", "reward/{}/std"
"""Keys of a reward in metrics.jsonl: its mean, and the mean over groups of the standard deviation within a group."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """A plot of keys of metrics.jsonl. ``keys``: label -> key. ``unit``: fractions from 0 to 1."""

    title: str
    keys: tuple[tuple[str, str], ...]
    unit: bool = False


CURVES = (
    _Curve("loss", (("loss", "loss"),)),
    _Curve("token accuracy", (("token accuracy", "mean_token_accuracy"),), unit=True),
    _Curve(
        "zero-variance groups of the total reward", (("zero-variance groups", "reward/total/zero_variance"),), unit=True
    ),
    _Curve(
        "truncated and unreadable completions",
        (("truncated", "completions/clipped_ratio"), ("unreadable", "reward/unreadable")),
        unit=True,
    ),
    _Curve(
        "completion length in tokens",
        (
            ("mean", "completions/mean_length"),
            ("shortest", "completions/min_length"),
            ("longest", "completions/max_length"),
        ),
    ),
    _Curve("rewards of pairs", (("chosen", "rewards/chosen"), ("rejected", "rewards/rejected"))),
    _Curve("accuracy of pairs", (("accuracy", "rewards/accuracies"),), unit=True),
    _Curve("entropy", (("entropy", "entropy"),)),
    _Curve("KL divergence", (("KL divergence", "kl"),)),
    _Curve("gradient norm", (("gradient norm", "grad_norm"),)),
    _Curve("learning rate", (("learning rate", "learning_rate"),)),
    _Curve("peak GPU memory in GB", (("reserved by torch", "gpu_memory_gb"),)),
)
"""Plots of a training stage, if it logs one of their keys."""


def training_section(run: FinishedRun) -> Section | None:
    """Return the curves of all training stages. None: nothing was logged."""
    blocks: list[Block] = []
    axis = STEP if run.imagegen is None else "epoch or round"
    for stage, logged in run.metrics.items():
        if plots := tuple(stage_plots(stage, logged, run.training.get(stage), axis)):
            blocks += [Text(_about(stage, logged, axis)), Plots(plots)]
    if not blocks:
        return None
    return Section("training", "Training", (*blocks, Text(_gpu_memory(run))))


def stage_plots(
    stage: str, logged: Sequence[Record], result: TrainingResult | None, axis: str = STEP
) -> Iterator[Plot]:
    """Yield the plots of a stage: its rewards, the other figures, and its validations."""
    yield from _reward_plots(stage, logged)
    for curve in CURVES:
        series = [one for label, key in curve.keys if (one := series_of(label, logged, key)) is not None]
        if series:
            yield _plot(f"{stage}: {curve.title}", series, axis, unit=curve.unit)
    validation = result.training.validation if result is not None else None
    if validation is not None and validation.validations:
        for name in validation.validations[0].figures:
            found = [(one.step, one.figures[name]) for one in validation.validations if name in one.figures]
            series = [Series(f"n {found[0][1].n:,}", [step for step, _ in found], [one.value for _, one in found])]
            yield _plot(f"{stage}: validation, {name} (n {found[0][1].n:,})", series)


def rewards_of(logged: Sequence[Record]) -> list[str]:
    """Return the rewards in the metrics of a stage."""
    prefix, suffix = MEAN.split("{}")
    names = dict.fromkeys(key for line in logged for key in line if key.startswith(prefix) and key.endswith(suffix))
    return [key.removeprefix(prefix).removesuffix(suffix) for key in names]


def _reward_plots(stage: str, logged: Sequence[Record]) -> Iterator[Plot]:
    """Yield the weighted total and each reward, with the standard deviation over the completions of a step."""
    total = _banded("mean", logged, "reward", STD.format("total"))
    if total is not None:
        yield _plot(f"{stage}: total reward", [total])
    for name in rewards_of(logged):
        one = _banded("mean", logged, MEAN.format(name), STD.format(name))
        same = series_of("zero-variance groups", logged, f"reward/{name}/zero_variance")
        if one is not None:
            yield _plot(f"{stage}: reward {name}", [one, *([same] if same is not None else [])], unit=True)


def _plot(title: str, series: Sequence[Series], axis: str = STEP, *, unit: bool = False) -> Plot:
    return Plot(title, lines(title, series, axis, unit=unit), _figures(series))


def _figures(series: Sequence[Series]) -> Table:
    """Return the first, lowest, highest and last value of each line."""

    def row(one: Series) -> tuple[str, ...]:
        chosen: Sequence[Callable[[Sequence[float]], float]] = (lambda ys: ys[0], min, max, lambda ys: ys[-1])
        return (one.label, f"{len(one.ys):,}", *(number(choose(one.ys)) for choose in chosen))

    return Table.of(("line", "logged", "first", "lowest", "highest", "last"), [row(one) for one in series])


def series_of(label: str, logged: Sequence[Record], key: str) -> Series | None:
    """Return the values of a key of metrics.jsonl over the optimizer steps. None: no step has it."""
    found = [(line["step"], float(line[key])) for line in logged if isinstance(line.get(key), int | float)]
    return Series(label, [step for step, _ in found], [value for _, value in found]) if found else None


def _banded(label: str, logged: Sequence[Record], key: str, width: str) -> Series | None:
    """Return a line with the band of one standard deviation. Steps without a standard deviation have no width."""
    mean = series_of(label, logged, key)
    if mean is None:
        return None
    stds = [float(line.get(width) or 0.0) for line in logged if isinstance(line.get(key), int | float)]
    low = [one - std for one, std in zip(mean.ys, stds, strict=True)]
    high = [one + std for one, std in zip(mean.ys, stds, strict=True)]
    return Series(label, mean.xs, mean.ys, low, high)


def _about(stage: str, logged: Sequence[Record], axis: str) -> str:
    steps = max(line["step"] for line in logged)
    band = " Bands are the standard deviation within a group, averaged over groups." if rewards_of(logged) else ""
    return f"{stage}: up to {axis} {steps:,}.{band}"


def _gpu_memory(run: FinishedRun) -> str:
    measured = {stage: peak.measured_gb for stage, peak in run.gpu_memory.items() if peak.measured_gb is not None}
    if not measured:
        return "GPU memory: no GPU was used."
    listed = ", ".join(f"{stage} {gigabytes:.1f} GB" for stage, gigabytes in measured.items())
    return f"Peak GPU memory that torch reserved: {listed}."
