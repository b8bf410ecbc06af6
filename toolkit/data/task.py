"""The definition of a task: rows, prompt, parser, rewards and metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.benchmark import Benchmark
from toolkit.data.episodes import AgentMemoryFunctions, Links
from toolkit.data.json_stream import Row
from toolkit.data.sample import Answer, Reward, Sample, Turn
from toolkit.data.shapes import Shape
from toolkit.errors import Problem
from toolkit.recipe import Recipe, Section, SyntheticData
from toolkit.scoring.regions import XYXY, BoxFormat

if TYPE_CHECKING:  # preferences imports this module
    from toolkit.data.preferences import PreferenceColumns

PATIENT, LESION, STUDY = GROUP_FIELDS = ("group.patient", "group.lesion", "group.study")
"""Fields of ``RowOrigin.column`` that any task can have: the columns of the group if ``data.group`` names none."""


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """Where a row came from and how its columns are named.

    Attributes:
        file: the source of the row.
        image_root: the absolute folder that relative image paths start from. No path may leave it.
        column: field of the task, or one of ``GROUP_FIELDS`` -> its column in this source.
        group: the column with the group. None: the columns of ``GROUP_FIELDS``, otherwise as ``Task.grouped_by`` says.
        context: columns for the prompt, which go into ``Sample.fields`` under their names.
        by: columns for results by column, likewise.
        max_images: a row with more images is unusable.
        settings: the settings of the task (``Task.settings``). Different settings must have a different ``repr``.
        identifiers: other columns that look like identifiers of patients.
        whole: columns of whole numbers that a table stores with a decimal point, because it has missing values.
        boxes: the format of boxes. None: the scan of the file finds it (``data.boxes = "auto"``).
        others: (field, column) of unread columns whose usual name says that they have a field of ``Task.one_value``.
        preference: columns of the chosen and the rejected answer. None: the rows are not for DPO.
    """

    file: Path
    image_root: Path
    column: Mapping[str, str]
    group: str | None = None
    context: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    max_images: int = 8
    settings: Any = None
    identifiers: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    boxes: BoxFormat | None = XYXY
    others: tuple[tuple[str, str], ...] = ()
    preference: "PreferenceColumns | None" = None


@dataclass(frozen=True, slots=True)
class Synthetic:
    """The synthetic rows of a task.

    Attributes:
        kind: their name in ``data.synthetic.kind``.
        description: a short description for tables.
        write: (existing folder, [data.synthetic], seed) -> split -> file of rows. The files are named ``train``,
            ``validation`` and ``test`` (.json or .csv), with images below the folder. The same arguments write the
            same rows.
        columns: the columns of the rows.
        min_size: the minimum ``data.synthetic.size``, in pixels.
        content: what the images show.
    """

    kind: str
    description: str
    write: Callable[[Path, SyntheticData, int], Mapping[str, Path]]
    columns: frozenset[str]
    min_size: int = 64
    content: str = "images"


@dataclass(frozen=True, slots=True)
class SetMetrics:
    """Metrics of a set of answers that are not means of their scores, such as mAP or corpus BLEU.

    ``values`` is called for every bootstrap sample, so everything that concerns one answer belongs into ``part``.

    Attributes:
        part: (Sample, Answer) -> what ``values`` needs of one answer. None: the metrics do not apply to the sample.
        values: the parts of a set -> metric -> value in [0, 1], or None if it is not defined for the set.
    """

    part: Callable[[Sample, Answer], Any]
    values: Callable[[Sequence[Any]], Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Found:
    """Settings that were found in the rows.

    Attributes:
        values: their names and values, in types of JSON. The run folder keeps them for prediction.
        notes: what was found, and warnings about the rows.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class SettingsFromRows:
    """Settings of a task that its rows decide, such as the classes.

    Rows are read without these settings first, and again with them.

    Attributes:
        find: (settings, split -> samples) -> what the rows decide. Raises DataError.
        apply: (settings, ``Found.values``) -> settings with them.
        needed: whether a row cannot be read alone, without these settings.
    """

    find: Callable[[Any, Mapping[str, Sequence[Sample]]], Found]
    apply: Callable[[Any, Mapping[str, Any]], Any]
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """Alternative texts at one place of an answer. A model takes one of them.

    Attributes:
        options: option -> its text, which continues the texts of the decisions before. The texts differ.
        ends: whether the answer ends after the text, so that the end of turn belongs to it.
    """

    options: Mapping[str, str]
    ends: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question. All functions are pure.

    Attributes:
        name: the value of ``data.task``, and the name of its section of settings, [data.<name>].
        description: the purpose of a model, for the model card.
        columns: field -> the column names looked for when the recipe's column map does not name one, in order.
        required: the fields a source must have. ``a|b`` requires one of them.
        leaking: names of columns that contain the answer. A recipe with one of them in the prompt gets a warning.
        read: (row id, row, origin) -> Sample. It raises RowProblem with a short constant reason.
        instruction: Sample -> the default instruction that follows the question.
        question: Sample -> the text of the question with its options, without instruction and context.
        target: Sample -> the completion that SFT learns.
        parse: (completion, Sample) -> Answer. It never raises, and sets ``problem`` to the reason of a failure.
        rewards: name -> reward.
        reward_weights: reward -> default weight. A reward with weight 0 is off unless the recipe sets a weight.
        scores: (Sample, Answer) -> name -> value in [0, 1], or None if it does not apply. Evaluation reports them.
        primary: the name in ``scores`` that comparisons and the final table use.
        labels: (Sample, Answer) -> (true label, predicted label or None) for macro-F1. None if it does not apply.
        baseline: training samples -> (Sample -> completion): the majority baseline, scored like a model.
        baselines: score -> its own majority baseline, if another answer is right more often.
        also: further names in ``scores`` with a separate table of results.
        set_metrics: metrics of all answers together. None: every metric is a mean of ``scores``.
        stratum: Sample -> the class that ``data.sampling = "balanced"`` draws evenly. None: the task has none.
        why: reward -> (Sample, Answer) -> the reason for its value.
        all_or_nothing: rewards that are 0 or 1 for nearly every answer.
        results_by: columns with a separate result for each value. Default of ``evaluate.by``.
        positive: the positive class of binary metrics. Default of ``evaluate.positive``.
        settings_model: the section [data.<name>]. Every key has a default. A key of type Path is a file.
        check: recipe of this task -> problems with its settings, with dotted keys as places.
        settings: (recipe, split) -> settings for the rows of this split. Raises RecipeError. Default: the section.
        from_rows: settings that the rows decide. None: the recipe decides all of them.
        choices: Sample -> the decisions that make an answer. An option named "" is no class. None: the task has none.
        truth: Sample -> class -> whether it is right, without the classes that the reference leaves open. The
            probabilities of ``choices`` are compared with it.
        synthetic: its synthetic rows. If None, a dry run needs the recipe's own rows.
        dry_run: (recipe, whether the rows are synthetic) -> key of the section -> value in the dry run.
        takes_options: whether a question of ``toolkit predict`` has options.
        placeholders: settings -> placeholder fields of the reference that ``read`` requires. Prediction removes them.
            A required field with the answer and more, such as the messages of a conversation, has none: ``read`` puts
            the placeholder into it.
        link: (all rows, source) -> their Links, for a task with episodes. None: rows are independent of each other.
        has_boxes: whether rows have boxes in the format of ``data.boxes`` (``toolkit.data.boxes.read_boxes``).
        notes: Sample -> warnings about a row that can be used, as code and short constant rule, which are counted.
        agent_memory: episodes and their agent memory. None: rows are independent of each other.
        turns: Sample -> the turns before the answer, the last one a user turn. SFT also learns their assistant turns.
            None: one user turn with the question.
        zero_shot: settings of the task for a model that was not trained for it, on a benchmark.
        benchmarks: public datasets of the task, which ``toolkit evaluate --benchmark`` knows by name.
        grouped_by: definition of a group if ``data.group`` names no column and the rows have no column of the patient.
        needs_image: whether every row must have an image. Otherwise, a row without one has only text.
        one_value: fields whose usual columns must agree if a row has several of them.
        prompt_key: Sample -> text that is equal for equal prompts, if their wording is drawn. None: the prompt itself.
        shapes: (Sample, Answer, or None for the reference) -> what a report draws over the first image.
        entry: ``file.py:TASK`` of a custom task. Empty for a task of the package.
    """

    name: str
    description: str
    columns: Mapping[str, tuple[str, ...]]
    required: frozenset[str]
    leaking: frozenset[str]
    read: Callable[[str, Row, RowOrigin], Sample]
    instruction: Callable[[Sample], str]
    question: Callable[[Sample], str]
    target: Callable[[Sample], str]
    parse: Callable[[str, Sample], Answer]
    rewards: Mapping[str, Reward]
    reward_weights: Mapping[str, float]
    scores: Callable[[Sample, Answer], Mapping[str, float | None]]
    primary: str
    labels: Callable[[Sample, Answer], tuple[str, str | None] | None]
    baseline: Callable[[Sequence[Sample]], Callable[[Sample], str]]
    also: tuple[str, ...] = ()
    set_metrics: SetMetrics | None = None
    baselines: Mapping[str, Callable[[Sequence[Sample]], Callable[[Sample], str]]] = field(default_factory=dict)
    stratum: Callable[[Sample], str] | None = None
    why: Mapping[str, Callable[[Sample, Answer], str]] = field(default_factory=dict)
    all_or_nothing: frozenset[str] = frozenset()
    results_by: tuple[str, ...] = ()
    positive: str | None = None
    settings_model: type[Section] | None = None
    check: Callable[[Recipe], Iterable[Problem]] = lambda recipe: ()
    settings: Callable[[Recipe, str], Any] = lambda recipe, split: recipe.settings
    from_rows: SettingsFromRows | None = None
    choices: Callable[[Sample], Sequence[Decision]] | None = None
    truth: Callable[[Sample], Mapping[str, bool]] = lambda sample: {}
    synthetic: Synthetic | None = None
    dry_run: Callable[[Recipe, bool], Mapping[str, Any]] = lambda recipe, synthetic: {}
    takes_options: bool = False
    placeholders: Callable[[Any], Mapping[str, Any]] = lambda settings: {}
    link: Callable[[Iterable[tuple[str, Row]], RowOrigin], Links] | None = None
    has_boxes: bool = False
    notes: Callable[[Sample], Iterable[tuple[str, str]]] | None = None
    agent_memory: AgentMemoryFunctions | None = None
    turns: Callable[[Sample], tuple[Turn, ...]] | None = None
    grouped_by: str = "each row's first image, or its question without one"
    needs_image: bool = False
    zero_shot: Mapping[str, Any] = field(default_factory=dict)
    benchmarks: tuple[Benchmark, ...] = ()
    one_value: frozenset[str] = frozenset()
    prompt_key: Callable[[Sample], str] | None = None
    shapes: Callable[[Sample, Answer | None], tuple[Shape, ...]] = lambda sample, answer: ()
    entry: str = ""

    def settings_of(self, recipe: Recipe, split: str, found: Mapping[str, Any]) -> Any:
        """Return the settings for the rows of a split, with those that were found in the rows (``Found.values``)."""
        settings = self.settings(recipe, split)
        return self.from_rows.apply(settings, found) if self.from_rows and found else settings

    @property
    def has_classes(self) -> bool:
        """Whether ``data.sampling = "balanced"`` has classes to balance."""
        return self.stratum is not None

    @property
    def has_probabilities(self) -> bool:
        """Whether ``evaluate.probabilities`` computes class probabilities."""
        return self.choices is not None

    @property
    def has_agent_memory(self) -> bool:
        """Whether questions carry agent memory from one to the next."""
        return self.agent_memory is not None
