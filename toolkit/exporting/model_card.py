"""Write the model card of an export (README.md in the Hub's format) import re
from the results of the run.

``model_card.md.jinja`` has the text of the card. This module has its figures and its YAML header.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from toolkit.data.result import DataResult
from toolkit.evaluation.results import BASELINE, BEFORE, Difference, EvaluationResult, ResultRow, evaluation_stage
from toolkit.exporting.card_template import render_card, table
from toolkit.exporting.licence import licence_of
from toolkit.exporting.public_names import is_hub_name, public_recipe, scrub
from toolkit.exporting.results import FormatExport, GgufExport, Verification
from toolkit.exporting.serving import Serving, fill_folder
from toolkit.images import ImagePolicy
from toolkit.models.model_paths import public_name
from toolkit.recipe import Recipe
from toolkit.recipe.windows import hounsfield_windows
from toolkit.runfolder import (
    EXPORT,
    TRAINING_STAGES,
    RunFolder,
    RunState,
    from_json,
    read_json,
    read_state,
    write_text,
)
from toolkit.runfolder.manifest import CARD
from toolkit.runfolder.usage import HOUR, UNKNOWN, ComputeRecord, Usage, energy, figure, read_compute, total
from toolkit.scoring.statistics import Estimate, Metrics, ProbabilityMetrics
from toolkit.tasks import TASKS

TEMPLATE = Path(__file__).parent / "model_card.md.jinja"
PIPELINE_TAG = "image-text-to-text"
LIBRARIES: Mapping[str, str] = {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}
RELATIONS: Mapping[str, str] = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
"""Format -> its relation to the base model on the Hub."""
FORMAT_LABELS: Mapping[str, str] = {
    "adapter": "a LoRA adapter (PEFT)",
    "merged": "merged weights (safetensors)",
    "gguf": "GGUF",
}
LEAK_LABELS: Mapping[str, str] = {
    "group": "groups (patients, lesions or images)",
    "image": "images",
    "question": "(image, question) pairs",
}
MIN_GROUPS = 5
"""Smallest number of patients (lesions, images) of a subgroup. A smaller one is hidden, because its intervals are wide
and it might identify a patient."""
MACHINE = ("platform",)
"""Entries of the versions in run.json that describe the machine."""


_WINDOWS: Mapping[str, str] = {
    "auto": "The window of a DICOM file was applied. Other images with more bits were reduced by the range of their "
    "values.",
    "range": "Images with more bits were reduced to 8 bits by the range of their values.",
    "percentile": "Images with more bits were reduced to 8 bits by their percentiles {low:g} and {high:g}.",
    "dicom": "The window of a DICOM file was applied.",
}
"""Value of images.window -> a sentence of the card."""


@dataclass(frozen=True, slots=True)
class ScoreTables:
    """The tables of results.json: the evaluated split, and score -> rows, with the primary score first."""

    split: str
    tables: Mapping[str, tuple[ResultRow, ...]]


@dataclass(frozen=True, slots=True)
class Subgroups:
    """The scores by the values of one column, as cells of a table, and the number of hidden values."""

    column: str
    scores: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The content of the model card of one exported format.

    Attributes:
        export: the exported format.
        recipe: the recipe of the run.
        serving: settings of servers.
        data: the result of the data stage. None: it has not finished.
        results: the tables of all evaluations. None: nothing was evaluated.
        evaluation: the evaluation of these weights. None: they were not evaluated.
        state: the content of run.json.
        compute: the compute record of the run.
        trained: the training stages of this run that produced the weights.
    """

    export: FormatExport
    recipe: Recipe
    serving: Serving
    data: DataResult | None
    results: ScoreTables | None
    evaluation: EvaluationResult | None
    state: RunState
    compute: ComputeRecord
    trained: tuple[str, ...]

    @property
    def base(self) -> str:
        """Return the public name of the base model."""
        return public_name(self.recipe.model.name)

    @property
    def commands(self) -> Sequence[str]:
        """Return the commands that serve the files, with their folder as the working directory."""
        return [fill_folder(command, ".") for command in self.export.commands]

    @property
    def sizing(self) -> str:
        """Return how images were resized, as the end of a sentence."""
        side = f"{self.recipe.images.max_side:,}"
        if ImagePolicy.from_recipe(self.recipe.images, self.recipe.model).square == "pad":
            return f"of {side} x {side} pixels: the longest side was resized, and black margins were added"
        return f"whose longest side was reduced to at most {side} pixels, and smaller images were not enlarged"

    @property
    def windowing(self) -> str:
        """Return how images with more than 8 bits became 8-bit images."""
        images = self.recipe.images
        low, high = images.percentiles
        if shown := hounsfield_windows(images.window):
            ranges = ", ".join(f"{bottom:g} to {top:g}" for bottom, top in shown)
            colours = " as red, green and blue" if len(shown) > 1 else ""
            window = f"Images in Hounsfield units (HU) show {ranges} HU{colours}."
        else:
            window = _WINDOWS[str(images.window)].format(low=low, high=high)
        return f"8-bit images without a window of their own kept their values. {window}"

    @property
    def is_last_row(self) -> bool:
        """Return whether the last row of the results is that of these weights."""
        if self.evaluation is None or self.results is None:
            return False
        return next(iter(self.results.tables.values()))[-1].estimate == self.evaluation.primary.value

    @property
    def beats_baseline(self) -> bool:
        """Return whether these weights are better than the majority baseline, or nothing compares the two."""
        found = self.evaluation.primary.differences.get(BASELINE) if self.evaluation else None
        return found is None or (found.clear and (found.difference.value or 0.0) > 0)

    @property
    def subgroups(self) -> Sequence[Subgroups]:
        """Return the scores of these weights by column, without the column of the patients."""
        by = self.evaluation.summary.by if self.evaluation else {}
        patients = {self.recipe.dataset.group, *(self.data.group_columns if self.data else ())}
        return [_subgroups(name, values) for name, values in by.items() if name not in patients]

    @property
    def rows(self) -> Sequence[tuple[str, str]]:
        """Return split and number of rows, as cells of a table."""
        return [(split, f"{count:,}") for split, count in self.data.rows.items()] if self.data else []

    @property
    def dropped(self) -> Mapping[str, int]:
        """Return reason -> number of dropped rows of all splits."""
        counts: dict[str, int] = {}
        for one in self.data.dropped if self.data else ():
            counts[one.reason] = counts.get(one.reason, 0) + one.count
        return counts

    @property
    def sources(self) -> Mapping[str, str]:
        """Return split -> public name of its source."""
        section = self.recipe.dataset
        named = {"train": section.train, "validation": section.validation, "test": section.test}
        return {split: public_name(source) for split, source in named.items() if source}

    @property
    def untrained(self) -> Sequence[str]:
        """Return the training stages of the recipe that these weights did not go through."""
        return [name for name in TRAINING_STAGES if getattr(self.recipe, name) is not None and name not in self.trained]

    @property
    def stages(self) -> Mapping[str, Usage]:
        """Return stage -> usage of `toolkit run`, without the export. Later commands do not change a model card."""
        starts = tuple(start for start in self.compute.sessions if start.command == "run")
        return {name: used for name, used in ComputeRecord(starts).stages().items() if name != EXPORT}

    @property
    def versions(self) -> Sequence[Mapping[str, str]]:
        """Return the versions of Python and the libraries at each start."""
        return [
            {name: version for name, version in session.versions.items() if name not in MACHINE}
            for session in self.state.sessions
        ]


def write_card(
    folder: Path, run: RunFolder, recipe: Recipe, weights: Path, export: FormatExport, serving: Serving
) -> None:
    """Write the model card of a format in ``folder``. The same run and format give the same bytes."""
    card = model_card(read_facts(run, recipe, weights, export, serving))
    model_folder = [Path(recipe.model.name)] if recipe.model.name.startswith("/") else []
    write_text(folder / CARD, scrub(str(card), run.path, Path.cwd(), *model_folder))


def read_facts(run: RunFolder, recipe: Recipe, weights: Path, export: FormatExport, serving: Serving) -> CardFacts:
    """Read the content of the model card of ``weights`` from the run folder."""
    stage = evaluation_stage(_evaluation_of(run, weights))
    return CardFacts(
        export=export,
        recipe=recipe,
        serving=serving,
        data=run.result("data", DataResult) if run.is_done("data") else None,
        results=_read_tables(run.results_file),
        evaluation=run.result(stage, EvaluationResult) if run.is_done(stage) else None,
        state=read_state(run),
        compute=read_compute(run.compute_file),
        trained=_trained_into(run, weights),
    )


def model_card(facts: CardFacts) -> ModelCard:
    """Return the model card with its header."""
    stages, versions = facts.stages, facts.versions
    return render_card(
        TEMPLATE,
        card_header(facts),
        facts=facts,
        recipe=facts.recipe,
        dataset=facts.recipe.dataset,
        format=facts.export.format,
        format_label=FORMAT_LABELS[facts.export.format],
        verification=facts.export.verification,
        evaluation=facts.evaluation,
        summary=facts.evaluation.summary if facts.evaluation else None,
        task=TASKS[facts.recipe.dataset.task].description,
        licence=licence_of(facts.recipe.model.name),
        base_is_on_hub=is_hub_name(facts.base),
        base_literal=Markup(repr(facts.base)),
        recipe_toml=public_recipe(facts.recipe),
        stages=stages,
        used=total(stages.values()),
        versions=versions[-1],
        other_starts=sum(version != versions[-1] for version in versions),
        leak_labels=LEAK_LABELS,
        min_groups=MIN_GROUPS,
        unknown=UNKNOWN,
        score_table=score_table,
        set_table=set_table,
        probability_table=probability_table,
        gguf_table=gguf_table,
        percent=percent,
        hours=lambda seconds: figure(seconds / HOUR),
        energy=energy,
        figure=figure,
    )


def score_table(score: str, rows: Sequence[ResultRow]) -> Markup:
    """Return the table of a score: each evaluation with its interval and its differences in percentage points."""
    head = ("", "n", score, "to the row above, points", "to the majority baseline, points")
    cells = [
        (row.label, f"{row.estimate.n:,}", percent(row.estimate), points(row.to_previous), points(row.to_baseline))
        for row in rows
    ]
    return table(head, cells)


def set_table(found: EvaluationResult) -> Markup:
    """Return the table of the metrics of the whole set, with the differences to the baseline in percentage points."""
    head = ("metric of the whole set", "n", "value", "majority baseline", "to the majority baseline, points")
    cells = [
        (name, f"{one.value.n:,}", percent(one.value), percent(one.baseline), change(one.differences.get(BASELINE)))
        for name, one in found.set_metrics.items()
    ]
    return table(head, cells)


def probability_table(found: ProbabilityMetrics) -> Markup:
    """Return the table of class probabilities: one row per class with its counts, and the means over classes."""
    points = [(one.fixed, one.level) for one in next(iter(found.classes.values())).operating_points]
    other = {"specificity": "sensitivity", "sensitivity": "specificity"}
    titles = [f"{other[fixed]} at {100 * level:.0f} % {fixed}" for fixed, level in points]
    head = ("class", "positive", "negative", "AUROC", "average precision", "prevalence", *titles)
    rows = [
        (
            name,
            f"{one.positives:,}",
            f"{one.negatives:,}",
            percent(one.auroc),
            percent(one.average_precision),
            _fraction(one.prevalence),
            *(percent(getattr(point, other[point.fixed])) for point in one.operating_points),
        )
        for name, one in found.classes.items()
    ]
    means = (percent(found.auroc), percent(found.average_precision), _fraction(found.prevalence))
    return table(head, [*rows, ("mean of classes", "", "", *means, *[""] * len(points))])


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def gguf_table(export: GgufExport) -> Markup:
    """Return the table of the quantizations with their verification."""
    head = (
        "",
        "file",
        "megabytes",
        "bits",
        "samples",
        "different completions",
        "largest difference of a token's log-probability",
        "mean difference of a token's log-probability",
    )
    rows = [
        (name, file.file, f"{file.megabytes:,.4g}", f"{file.bits:g}", found.samples, found.differing, *_gaps(found))
        for name, file in export.files.items()
        if (found := file.verification) is not None
    ]
    return table(head, rows)


def _gaps(found: Verification) -> tuple[str, str]:
    return f"{found.gap:.4g}", f"{found.mean_gap:.4g}"


def percent(found: Estimate) -> Markup:
    """Return an estimate in percent with its interval, or "-" if it has no value."""
    if found.value is None:
        return Markup("-")
    interval = "no interval"
    if found.low is not None and found.high is not None:
        interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return Markup(f"{100 * found.value:.1f} % [{interval}]")


def points(found: Difference | None) -> Markup:
    """Return a paired difference in percentage points with its interval, or an empty text."""
    return Markup("") if found is None else change(found.difference)


def change(found: Estimate | None) -> Markup:
    """Return a difference in percentage points with its interval, or an empty text if it has no value."""
    if found is None or found.value is None:
        return Markup("")
    interval = "no interval"
    if found.low is not None and found.high is not None:
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return Markup(f"{100 * found.value:+.1f} [{interval}]")


def card_header(facts: CardFacts) -> ModelCardData:
    """Return base model, licence, library, tags and results. Unknown fields are left out.

    The results are those of the run's weights. The card states their precision.
    """
    licence, name = licence_of(facts.recipe.model.name), facts.export.format
    is_on_hub = is_hub_name(facts.base)
    results = _eval_results(facts)
    return ModelCardData(
        base_model=facts.base if is_on_hub else None,
        base_model_relation=RELATIONS[name] if is_on_hub else None,
        library_name=LIBRARIES[name],
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        pipeline_tag=PIPELINE_TAG,
        tags=_tags(facts),
        datasets=_hub_datasets(facts.recipe) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=facts.recipe.run.name if results else None,
        eval_results=results or None,
    )


def _tags(facts: CardFacts) -> list[str]:
    recipe = facts.recipe
    tuning = "lora" if recipe.model.tuning == "lora" else "full-fine-tuning"
    synthetic = ["generated-data"] if recipe.dataset.synthetic else []
    return ["medical", "vision-language", recipe.task.name, *facts.trained, tuning, facts.export.format, *synthetic]


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    found, datasets = facts.evaluation, _hub_datasets(facts.recipe)
    if found is None:
        return []
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name=facts.recipe.task.name,
            dataset_type=datasets[-1] if datasets else "custom",
            dataset_name=f"held-out questions ({found.split})",
            dataset_split=found.split,
            metric_type=name.partition(" ")[0],
            metric_name=name,
            metric_value=_rounded(score.value.value),
            metric_args={
                "n": score.value.n,
                "low": _rounded(score.value.low),
                "high": _rounded(score.value.high),
            },
        )
        for name, score in found.scores.items()
        if score.value.value is not None
    ]


def _hub_datasets(recipe: Recipe) -> list[str]:
    """Return the datasets on the Hub that the recipe reads."""
    sources = [recipe.dataset.train, recipe.dataset.validation, recipe.dataset.test]
    hub = [re.split("[:#]", text.removeprefix("hub:"))[0] for text in sources if text and text.startswith("hub:")]
    return list(dict.fromkeys(hub))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _subgroups(column: str, values: Mapping[str, Metrics]) -> Subgroups:
    shown = {value: found for value, found in values.items() if found.groups >= MIN_GROUPS}
    scores = tuple(dict.fromkeys(score for found in shown.values() for score in found.scores))
    rows = tuple(
        (value, f"{found.n:,}", *(percent(found.scores[score]) if score in found.scores else "-" for score in scores))
        for value, found in shown.items()
    )
    return Subgroups(column, scores, rows, hidden=len(values) - len(shown))


def _read_tables(file: Path) -> ScoreTables | None:
    """Return the tables in results.json, which the pipeline writes before the export. None: nothing was evaluated."""
    found = read_json(file) if file.is_file() else {}
    if not found.get("rows"):
        return None
    return from_json(ScoreTables, {"split": found["split"], "tables": {found["score"]: found["rows"], **found["also"]}})


def _evaluation_of(run: RunFolder, weights: Path) -> str:
    """Return the name of the evaluation of these weights: that of their stage, otherwise of the base model."""
    return next((name for name in TRAINING_STAGES if run.weights_folder(name) == weights), BEFORE)


def _trained_into(run: RunFolder, weights: Path) -> tuple[str, ...]:
    """Return the finished training stages up to that of these weights. None if another run trained them."""
    done = [name for name in TRAINING_STAGES if run.is_done(name)]
    last = [number for number, name in enumerate(done) if run.weights_folder(name) == weights]
    return tuple(done[: last[0] + 1]) if last else ()
