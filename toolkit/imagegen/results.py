"""The table of results: base, control and each method, with paired differences and reference figures."""

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.imagegen.evaluation.image_metrics import CopyFigures, DistributionFigures, DiversityFigures
from toolkit.imagegen.evaluation.statistics import MIN_PAIRS, Bootstrap, compare_arms
from toolkit.imagegen.ratings.prepare import RatingsResult
from toolkit.imagegen.scorers.train_scorers import ScorersResult
from toolkit.imagegen.training.arm import ArmFigures
from toolkit.imagegen.training.ddpo_stage import DdpoResult
from toolkit.imagegen.training.sft_stage import SftResult
from toolkit.runfolder import RunFolder
from toolkit.scoring.statistics import Estimate, Paired

BASE = "base"
LABELS: Mapping[str, str] = {BASE: "base", "control": "control (random images)", "sft": "sft", "ddpo": "ddpo"}
"""Arm -> its label in the table, in order."""


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm of the table. Every mean is over the same prompts and noise, with a bootstrap over prompts.

    Attributes:
        arm: base, control, sft or ddpo.
        label: its label in the table.
        judge: mean judge score.
        to_base: paired difference of judge scores to the base.
        to_control: the same to the control. None without one.
        judge_pass_rate: fraction of images that the judge passes.
        selector: mean selector score, a part of the reward, so that it is no evidence.
        agreement: mean agreement with the prompt, also a part of the reward.
        distribution: KID and FID to the reference images.
        diversity: within prompts.
        copies: distance to the nearest reference image.
        oracle: mean oracle score, for synthetic data only.
    """

    arm: str
    label: str
    judge: Estimate
    to_base: Paired | None
    to_control: Paired | None
    judge_pass_rate: Estimate
    selector: Estimate
    agreement: Estimate | None
    distribution: DistributionFigures
    diversity: DiversityFigures
    copies: CopyFigures
    oracle: Estimate | None


@dataclass(frozen=True, slots=True)
class ImagegenResult:
    """The results of a run.

    Attributes:
        rows: the table.
        real_diversity: diversity of the reference images (rated well).
        ratings: the ratings and their splits.
        scorers: agreement of selector, judge and policy with held-out ratings.
        ddpo: rounds of ddpo.
        notes: limits of the figures in the table.
    """

    rows: tuple[ArmRow, ...]
    real_diversity: DiversityFigures | None
    ratings: RatingsResult | None
    scorers: ScorersResult | None
    ddpo: DdpoResult | None
    notes: tuple[str, ...]

    def row(self, arm: str) -> ArmRow:
        """Return an arm's row. Raises KeyError."""
        return {row.arm: row for row in self.rows}[arm]


def read_result(run: RunFolder, bootstrap: Bootstrap) -> ImagegenResult:
    """Return the results of the finished stages of a run."""
    figures = arm_figures(run)
    ratings = run.result("ratings", RatingsResult) if run.is_done("ratings") else None
    return ImagegenResult(
        rows=tuple(arm_row(arm, figures, bootstrap) for arm in figures),
        real_diversity=next((one.metrics.real_diversity for one in figures.values()), None),
        ratings=ratings,
        scorers=run.result("scorers", ScorersResult) if run.is_done("scorers") else None,
        ddpo=run.result("ddpo", DdpoResult) if run.is_done("ddpo") else None,
        notes=tuple(_notes(figures, ratings)),
    )


def arm_figures(run: RunFolder) -> dict[str, ArmFigures]:
    """Return the figures of each finished arm, in the order of the table."""
    kinds: dict[str, type[SftResult | DdpoResult]] = {"control": SftResult, "sft": SftResult, "ddpo": DdpoResult}
    found: dict[str, ArmFigures] = {BASE: run.result(BASE, ArmFigures)} if run.is_done(BASE) else {}
    for arm, kind in kinds.items():
        if run.is_done(arm):
            found[arm] = run.result(arm, kind).figures
    return found


def arm_row(arm: str, figures: Mapping[str, ArmFigures], bootstrap: Bootstrap) -> ArmRow:
    """Return an arm's row, with its differences to the arms that are in ``figures``."""
    metrics = figures[arm].metrics

    def against(other: str) -> Paired | None:
        if arm in (other, BASE) or other not in figures:
            return None
        before = figures[other].metrics.judge_by_key
        return compare_arms(before, metrics.judge_by_key, bootstrap, min_pairs=2)

    return ArmRow(
        arm=arm,
        label=LABELS[arm],
        judge=metrics.judge,
        to_base=against(BASE),
        to_control=against("control") if arm == "sft" else None,
        judge_pass_rate=metrics.judge_pass_rate,
        selector=metrics.selector,
        agreement=metrics.agreement,
        distribution=metrics.distribution,
        diversity=metrics.diversity,
        copies=metrics.copies,
        oracle=figures[arm].oracle,
    )


def _notes(figures: Mapping[str, ArmFigures], ratings: RatingsResult | None) -> list[str]:
    notes = list(ratings.warnings) if ratings else []
    if figures and (n := next(iter(figures.values())).metrics.n) < MIN_PAIRS:
        notes.append(f"{n} images of each arm are fewer than {MIN_PAIRS}, so that small differences cannot be seen")
    if ratings and ratings.synthetic:
        notes.append("synthetic images and simulated experts: the figures show that the method works, not quality")
    return notes
