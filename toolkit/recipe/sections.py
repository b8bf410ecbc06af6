"""The recipe's sections, frozen. Every default and every name a recipe may use stands here.

Loading makes the paths in ``model``, ``data`` and ``rewards`` absolute: a path in a file starts at the file's folder, a
path in ``--set`` at the working directory. Only ``run.folder`` stays relative to the working directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from toolkit.errors import Problem, RecipeError
from toolkit.recipe.base import Section
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.task import RecipeTask

Kind = TypeVar("Kind", bound=BaseModel)

DATA_MISSING = "data_missing"
"""pydantic's type of the error that a recipe has neither [data] nor [imagegen]."""

REHEARSAL = ".rehearsal"
"""How the name of a rehearsal's run ends."""

SPLITS = ("train", "validation", "test")
"""The splits, in the order in which they give up what they share with a later one."""

Share = Field(ge=0, le=1)


class Run(Section):
    """Where a run lives and what makes it repeatable."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The run's folder inside ``folder``."""
    folder: Path = Path("runs")
    """Where run folders are made, relative to the working directory."""
    seed: int = Field(3407, ge=0, lt=2**31)
    """Seeds data order, sampling, adapter initialisation and bootstrap."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Experiment trackers, passed on to transformers."""
    checkpoint_steps: int = Field(50, ge=1)
    """A resumable checkpoint every so many optimiser steps."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older checkpoints are removed once a newer one is complete."""
    log_steps: int = Field(1, ge=1)
    """A line in the log every so many optimiser steps."""
    purpose: Literal["training", "search", "ablation", "rehearsal"] = "training"
    """Under which heading the compute report counts the run; `toolkit run --rehearse` sets the last one."""
    country: str | None = Field(None, pattern=r"^[A-Z]{3}$")
    """Where the machine stands, in three letters (ISO 3166, such as DEU): its mix of electricity gives the CO2. Without
    it, energy is reported and CO2 is not."""

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is a rehearsal, which begins anew each time and replaces the one before."""
        return self.purpose == "rehearsal" and self.name.endswith(REHEARSAL)


class Model(Section):
    """Which model, how it is loaded and what of it is trained."""

    name: str = "tiny"
    """``tiny`` (shipped with the package), a Hub name, or a folder: it starts with ``./``, ``../``, ``~`` or ``/``."""
    revision: str | None = None
    backend: Literal["auto", "hf", "unsloth"] = "auto"
    """``auto`` is unsloth for LoRA on a CUDA device where it is installed, except for ``tiny``, 32bit and several
    processes; else hf: transformers and peft."""
    precision: Literal["auto", "4bit", "8bit", "16bit", "32bit"] = "auto"
    """4bit is bitsandbytes nf4, slow on a CPU. ``auto``: 4bit for LoRA on CUDA, otherwise 32bit."""
    tuning: Literal["lora", "full"] = "lora"
    adapter: Path | None = None
    """An earlier run's folder, or an adapter's, to start from."""
    max_tokens: int = Field(2048, ge=16)
    """Prompt, image tokens and answer together; a longer row is found before training, never cut."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False


class Lora(Section):
    """The adapter (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the language model, by the last part of their name."""
    vision: bool = False
    """Adapt the linear layers of the vision tower too."""


class Phantom(Section):
    """Generated practice data, written in the layout of a real data set."""

    kind: str
    """The ``kind`` of a task's synthetic rows."""
    train: int = Field(1200, ge=1)
    validation: int = Field(0, ge=0)
    test: int = Field(400, ge=1)
    size: int = Field(256, ge=64, le=2048)
    """Width of the pictures in pixels; films (of 16 bits) and screens are square."""


class Split(Section):
    """Shares of the groups that are held out where the files give no split."""

    validation: float = Field(0.0, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)


class Data(Section):
    """Rows: where they are, what their columns mean, how they are split."""

    task: str
    """The name of a task, or ``file.py:TASK`` for a task of your own."""
    train: str | None = None
    """A file (.json .jsonl .parquet .csv), a folder of them, or ``hub:owner/name`` with an optional ``#split``."""
    validation: str | None = None
    test: str | None = None
    phantom: Phantom | None = None
    """Generate practice data instead of reading files."""
    image_root: Path | None = None
    """Relative image paths start here and none may leave it; default: the folder of the rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of the task -> column of the source; columns with the usual names are found without it."""
    group: str | None = None
    """The column that names the patient or lesion; default: the row's first image."""
    split: Split = Split()
    sampling: Literal["natural", "balanced"] = "natural"
    """``balanced``: training draws every class equally often, and within a class every group (lesion, patient)."""
    on_leak: Literal["stop", "report", "drop"] = "stop"
    """A group, image or question that stands in two splits: ``drop`` removes the training row, counted."""
    max_dropped: float = Field(0.05, ge=0, le=1)
    """More unusable rows than this share stop the run."""
    limit_train: int | None = Field(None, ge=1)
    limit_validation: int | None = Field(None, ge=1)
    limit_test: int | None = Field(None, ge=1)
    """At most so many rows, chosen by the seed."""


class Images(Section):
    """One policy for every picture, in training, evaluation and prediction."""

    max_side: int = Field(896, ge=16)
    """Longest side after reduction, in pixels; smaller pictures are not enlarged."""
    window: Literal["auto", "range", "percentile", "dicom"] = "auto"
    """More than 8 bits to 8: DICOM's window, the data's range, or percentiles. ``auto``: DICOM's, else range."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    resample: Literal["area", "bilinear", "bicubic", "lanczos", "nearest"] = "area"
    unreadable: Literal["stop", "skip", "placeholder"] = "stop"
    scan: Literal["auto", "full", "header", "off"] = "auto"
    """Before training: ``full`` decodes every picture (and fills the disk cache), ``header`` opens it and looks at its
    end; ``auto`` is full up to 20,000 pictures and with ``unreadable = "skip"``, else header."""
    max_pixels: int = Field(120_000_000, ge=1)
    """A larger picture is refused before it is decoded (decompression bombs)."""
    max_per_question: int = Field(8, ge=1)
    memory_cache_mb: int = Field(512, ge=0)
    disk_cache: bool = True


class Prompt(Section):
    """What stands around the question."""

    system: str | None = None
    instruction: str | None = None
    """Replaces the task's own instruction."""
    context: tuple[str, ...] = ()
    """Columns that are put before the question, such as Indication. None is, unless it is named here."""


class Optimisation(Section):
    """What SFT and GRPO share."""

    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = True
    max_steps: int | None = Field(None, ge=1)
    """Ends training before ``epochs`` are over."""


class Sft(Optimisation):
    """Supervised fine-tuning on the reference answers; the loss covers the answer only."""

    learning_rate: float = Field(2e-4, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(1, ge=1)
    """Samples a forward pass."""
    accumulation: int = Field(8, ge=1)
    """Forward passes an optimiser step."""
    max_grad_norm: float = Field(1.0, gt=0)


class Grpo(Optimisation):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    A step generates ``prompts_per_step * generations`` completions and makes one update from them.
    """

    learning_rate: float = Field(5e-6, gt=0)
    epochs: float = Field(1.0, gt=0)
    prompts_per_step: int = Field(2, ge=1, le=4096)
    generations: int = Field(4, ge=2, le=1024)
    """Completions of one prompt: the group that rewards are compared in."""
    micro_batch: int = Field(1, ge=1)
    """Completions a forward pass; divides ``prompts_per_step * generations``."""
    max_completion_tokens: int = Field(128, ge=1)
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """Who writes the completions. vllm: through Unsloth, with one picture a prompt, no adapter on the vision tower and
    a GPU of 24 GB at least."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    beta: float = Field(0.0, ge=0)
    """KL weight. The reference is the model as the stage found it: after SFT the SFT model, else the base model."""
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"] = "dapo"
    importance: Literal["token", "sequence"] = "token"
    """``sequence`` is GSPO (arXiv 2507.18071)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated: bool = False
    max_grad_norm: float = Field(0.2, gt=0)
    probe_prompts: int = Field(8, ge=0)
    """Prompts that are sampled before step 1 to see whether there is anything to learn; 0 switches the probe off."""
    probe_max_truncated: float = Field(0.5, ge=0, le=1)
    """The run stops when more of the probe's completions than this share run into the token limit."""
    probe_on_failure: Literal["stop", "report"] = "stop"
    """What happens where the probe finds nothing to learn: no group with any spread, or too many answers cut off."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> "Grpo":
        if self.completions_per_step % self.micro_batch:
            raise ValueError(
                f"micro_batch (={self.micro_batch}) must divide prompts_per_step * generations "
                f"(={self.completions_per_step})"
            )
        return self

    @property
    def completions_per_step(self) -> int:
        """Completions that one optimiser step is made from."""
        return self.prompts_per_step * self.generations


class Rewards(BaseModel):
    """Weights by the reward's name, and the user's own rewards as ``file.py:function``."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    custom: tuple[str, ...] = ()
    __pydantic_extra__: dict[str, float]

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights that the recipe names."""
        return dict(self.__pydantic_extra__)


class Evaluate(Section):
    """Greedy answers on held-out questions, before training and after each stage."""

    split: Literal["validation", "test"] = "test"
    limit: int | None = Field(None, ge=1)
    """At most so many rows, drawn by the seed. Not for a task with agent memory, whose episodes it would cut."""
    max_tasks: int | None = Field(None, ge=1)
    """Tasks with agent memory: at most so many episodes, drawn by the seed, each with all of its rows."""
    memory: tuple[Literal["reference", "own", "off"], ...] = ("reference", "own")
    """Tasks with agent memory: the memories that every step is asked with. ``reference``: what the reference of the
    step before left; ``own``: what the model's own answers left, step after step; ``off``: none, for an ablation."""
    batch_size: int = Field(8, ge=1)
    max_completion_tokens: int = Field(128, ge=1)
    before: bool = True
    """Evaluate the model as it is before the first training stage."""
    by: tuple[str, ...] | None = None
    """Columns whose values get figures of their own; default: the task's."""
    positive: str | None = None
    """A label that is set against all others, such as ``mel``; default: the task's."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of the groups for intervals that Wilson's formula does not cover."""


class Export(Section):
    """Weights for other programs."""

    to: tuple[Literal["adapter", "merged", "gguf"], ...] = ("adapter", "merged")
    """``gguf`` is made from the merged weights, which are written too."""
    optional: tuple[Literal["gguf"], ...] = ()
    """Forms that are written too where what they need is installed; where it is not, that is told."""
    quant: tuple[Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"], ...] = ("f16", "q8_0", "q4_k_m")
    """The quantisations of a GGUF's text model; its projector is always f16."""
    verify: int = Field(16, ge=0)
    """Held-out questions whose greedy answers the reloaded weights must repeat; 0: nothing is verified."""
    allow_dequantised: bool = False
    """Merge into the dequantised weights of a base that is stored quantised: its rounding stays in them."""


class Recipe(Section):
    """A whole run. A stage whose section is absent is off.

    ``data`` must be present, except beside ``imagegen``, which has only ``run`` and ``images`` beside it.
    ``recipe_model`` returns the class that knows the tasks. This class alone accepts no section of a task.
    """

    tasks: ClassVar[Mapping[str, RecipeTask]] = {}
    """The tasks that ``data.task`` may name."""

    run: Run
    model: Model = Model()
    lora: Lora = Lora()
    data: Data | None = None
    images: Images = Images()
    prompt: Prompt = Prompt()
    sft: Sft | None = None
    grpo: Grpo | None = None
    rewards: Rewards = Rewards()
    evaluate: Evaluate | None = None
    export: Export | None = None
    imagegen: Imagegen | None = None

    @model_validator(mode="after")
    def _has_data(self) -> "Recipe":
        if self.data is None and self.imagegen is None:
            raise PydanticCustomError(DATA_MISSING, "must have a section [data] or [imagegen]")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the recipe in another process, where ``recipe_model`` makes the class again."""
        task = None if self.data is None else self.data.task
        return _restore, (self.tasks, task, self.model_dump())

    @property
    def run_folder(self) -> Path:
        """``run.folder/run.name``, relative to the working directory."""
        return self.run.folder / self.run.name

    @property
    def dataset(self) -> Data:
        """The section [data] of a vision-language model's recipe.

        Raises:
            RecipeError: the recipe has [imagegen], whose data are its own.
        """
        if self.data is None:
            raise RecipeError([Problem("recipe.section_missing", "must have a section [data]", self.run.name)])
        return self.data

    @property
    def task(self) -> RecipeTask:
        """The task that ``data.task`` names."""
        return self.tasks[self.dataset.task]

    @property
    def settings(self) -> Any:
        """The section [data.<task>] of the recipe's task; None if the task has no settings."""
        return getattr(self.data, self.task.name, None)

    @property
    def sections_of_other_tasks(self) -> tuple[str, ...]:
        """The names of the sections [data.<task>] that belong to other tasks."""
        inner = set(type(self.dataset).model_fields) - set(Data.model_fields)
        return tuple(sorted(inner - {self.task.name}))

    @property
    def evaluation(self) -> Evaluate:
        """How answers are generated and judged: the recipe's own section, else its defaults."""
        return self.evaluate or Evaluate()

    @property
    def results_by(self) -> tuple[str, ...]:
        """The columns whose values get figures of their own."""
        return self.task.results_by if self.evaluation.by is None else self.evaluation.by

    @property
    def positive(self) -> str | None:
        """The label that is set against all others; None: none is."""
        return self.evaluation.positive or self.task.positive

    @property
    def reward_weights(self) -> Mapping[str, float]:
        """name -> weight for this task: the defaults, then the recipe's own; a custom reward defaults to 1."""
        custom = {name.rpartition(":")[2]: 1.0 for name in self.rewards.custom}
        return {**self.task.reward_weights, **custom, **self.rewards.weights}


_MODELS: dict[tuple[object, ...], type[Recipe]] = {}


def recipe_model(tasks: Mapping[str, RecipeTask], task: str | None = None) -> type[Recipe]:
    """Return the class of recipes that may name one of ``tasks``, with a section [data.<name>] for their settings.

    Args:
        tasks: name -> task. The mapping must stay as it is.
        task: the key of a user's task, which ``tasks`` finds but does not list; None: no such task.
    """
    own = {} if task is None or task in tasks else {task: tasks[task]}
    settings_of_own = next((one.settings_model for one in own.values()), None)
    # The class keeps `tasks` alive, so its id stays taken. Equal recipes need the same class.
    key = (id(tasks), *own, settings_of_own)
    if key not in _MODELS:
        _MODELS[key] = _make_model(tasks, {**tasks, **own})
    return _MODELS[key]


def _make_model(tasks: Mapping[str, RecipeTask], named: Mapping[str, RecipeTask]) -> type[Recipe]:
    """Return the class of recipes whose ``data.task`` is a key of ``named``, and which look tasks up in ``tasks``."""
    known = named.values()
    kinds = tuple(one.synthetic.kind for one in known if one.synthetic is not None)
    phantom: Any = _subclass(Phantom, kind=(Literal[kinds], ...)) if kinds else Phantom
    sections = {one.name: (one.settings_model, one.settings_model()) for one in known if one.settings_model}
    task: Any = Literal[tuple(named)] if named else str
    data: Any = _subclass(Data, task=(task, ...), phantom=(phantom | None, None), **sections)
    model = _subclass(Recipe, data=(data | None, None))
    model.tasks = tasks
    return model


def _subclass(base: type[Kind], **fields: Any) -> type[Kind]:
    """Return ``base`` with more or other fields, under the same name."""
    return create_model(base.__name__, __base__=base, __module__=base.__module__, __doc__=base.__doc__, **fields)


def _restore(tasks: Mapping[str, RecipeTask], task: str | None, table: dict[str, Any]) -> Recipe:
    return recipe_model(tasks, task).model_validate(table)
