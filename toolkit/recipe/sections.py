"""Sections of a recipe about the run, the model and the data: every key with its type, default and description."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from toolkit.recipe.base import Section

MAX_NUMBER = 1_000_000_000
"""Upper bound of counts of rows and optimizer steps, and of numbers that no run needs to be larger."""

MAX_TOKENS = 10_000_000
"""Upper bound of lengths in tokens, which is the context of the longest models."""

FilterValue = str | int | float | bool
"""A value of ``data.filter``, compared without conversion: the text "1" is not the number 1."""

DRY_RUN_SUFFIX = ".dry-run"
"""Suffix of the name of a dry run."""

ALL_LINEAR = "all-linear"
"""Value of ``lora.targets`` for every linear layer of the language model."""

SPLITS = ("train", "validation", "test")
"""The splits. With ``on_leak = "drop"``, a shared row is dropped from the earlier split."""


class Run(Section):
    """The name, folder and seed of the run, and how often it logs and saves."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run, and of its folder in ``folder``."""
    folder: Path = Path("runs")
    """Parent of the run folders, relative to the working directory."""
    seed: int = Field(3407, ge=0, lt=2**31)
    """Seed of the data, their splits and limits, the bootstrap and the training."""
    training_seed: int | None = Field(None, ge=0, lt=2**31)
    """Seed of the training alone: data order, adapter initialization, sampling of completions. Default: ``seed``.
    `toolkit run --seeds` sets it. Data and evaluated samples are then equal for all seeds."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Experiment trackers. They receive the training curves and the results of every evaluation."""
    tracker_examples: int = Field(0, ge=0, le=64)
    """Examples of every evaluation that the trackers receive: image, question, completion, reference and score. wandb
    uploads them, so the data must be allowed to leave the machine."""
    checkpoint_steps: int = Field(50, ge=1, le=MAX_NUMBER)
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, le=MAX_NUMBER)
    """Number of checkpoints to keep. Older ones are removed when a new one is complete."""
    log_steps: int = Field(1, ge=1, le=MAX_NUMBER)
    """Optimizer steps between two log lines."""
    purpose: Literal["training", "search", "ablation", "dry_run"] = "training"
    """Heading of the run in the compute report. `toolkit run --dry-run` sets ``dry_run``."""
    country: str | None = Field(None, pattern=r"^[A-Z]{3}$")
    """Country of the machine as an ISO 3166 code of three letters, such as DEU. Its electricity mix determines the CO2.
    Without it, only energy is reported."""

    @property
    def seed_of_training(self) -> int:
        """Return the seed of the training."""
        return self.seed if self.training_seed is None else self.training_seed

    @property
    def is_dry_run(self) -> bool:
        """Return whether this is a dry run. A dry run starts again each time and replaces the previous one."""
        return self.purpose == "dry_run" and self.name.endswith(DRY_RUN_SUFFIX)


class Model(Section):
    """The base model, how it is loaded, and which parameters are trained."""

    name: str = "tiny"
    """``tiny`` (shipped with the package), a Hub name, or a folder that starts with ``./``, ``../``, ``~`` or ``/``."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    family: (
        Literal[
            "tiny",
            "gemma-3",
            "gemma-4",
            "medgemma-1",
            "medgemma-1.5",
            "paligemma",
            "qwen2-vl",
            "qwen2.5-vl",
            "qwen3-vl",
        ]
        | None
    ) = None
    """Model family, which determines how the model writes coordinates. Default: from config.json, the name and the
    model card. Tasks with coordinates need it if these do not name the release, as for a folder ``medgemma-4b``."""
    backend: Literal["auto", "hf", "unsloth"] = "auto"
    """``hf`` is transformers and peft. ``auto`` is unsloth for LoRA on a CUDA device if it is installed, but hf for
    ``tiny``, 32bit and several processes."""
    precision: Literal["auto", "4bit", "8bit", "16bit", "32bit"] = "auto"
    """Precision of the base weights. 4bit is bitsandbytes nf4, which is slow on a CPU. ``auto`` is 4bit for LoRA on
    CUDA, otherwise 32bit."""
    tuning: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all parameters."""
    adapter: Path | None = None
    """Folder of an earlier run or of an adapter to start from."""
    max_tokens: int = Field(2048, ge=16, le=MAX_TOKENS)
    """Maximum length of prompt, image tokens and completion in tokens. Longer rows are reported before training and
    never truncated."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository."""


class Lora(Section):
    """The LoRA adapter (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = Field(16, ge=1, le=4096)
    """Rank."""
    alpha: int = Field(32, ge=1, le=1_000_000)
    """Scaling factor. The update is multiplied by ``alpha / r``."""
    rslora: bool = False
    """Rank-stabilized LoRA (Kalajdzievski 2023, arXiv 2312.03732): the update is multiplied by ``alpha / sqrt(r)``."""
    dora: bool = False
    """DoRA (Liu et al. 2024, arXiv 2402.09353): train the length of each row of a matrix apart from its direction. It
    needs more time and GPU memory. Not for ``rollouts = "vllm"``."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the adapter."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers of the language model, by the last part of their name, such as ``["q_proj", "v_proj"]``.
    ``all-linear`` is every one except the output head: attention and MLP, and in some families others, such as the
    gated-delta layers of Qwen3.5."""
    vision: bool = False
    """Also adapt the linear layers of the vision tower."""


class SyntheticData(Section):
    """Synthetic data in the layout of a real dataset."""

    kind: str
    """Kind of images and questions. It must match ``data.task``."""
    train: int = Field(1200, ge=1, le=1_000_000)
    """Number of training rows."""
    validation: int = Field(0, ge=0, le=1_000_000)
    """Number of validation rows."""
    test: int = Field(400, ge=1, le=1_000_000)
    """Number of test rows."""
    size: int = Field(256, ge=64, le=2048)
    """Image width in pixels. Radiographs (16 bits) and screenshots are square."""


class Split(Section):
    """Fractions of the groups to hold out if the files have no split."""

    validation: float = Field(0.0, ge=0, lt=1)
    """Fraction for validation."""
    test: float = Field(0.1, ge=0, lt=1)
    """Fraction for testing."""


class Data(Section):
    """The rows: their source, columns, groups and splits."""

    task: str
    """The task, which defines prompt, parser, rewards and metrics. ``file.py:TASK`` is a custom task."""
    train: str | None = None
    """Training rows: a file, a folder, or ``hub:owner/name`` with an optional ``:configuration``. ``#split`` at the end
    chooses a split of the source. See the reference page of data formats."""
    validation: str | None = None
    """Validation rows, likewise. Default: the validation split of ``train`` if it has one."""
    test: str | None = None
    """Test rows, likewise. Default: the test split of ``train`` if it has one."""
    filter: dict[str, FilterValue | tuple[FilterValue, ...]] = Field(default_factory=dict)
    """Column -> value, or a list of values. Only rows with exactly one of the values in each column are read."""
    synthetic: SyntheticData | None = None
    """Generate synthetic data instead of reading files."""
    image_root: Path | None = None
    """Folder of relative image paths, which must stay inside it. Default: the folder of the rows."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of the task -> column of the source. Columns with common names are found without it."""
    group: str | None = None
    """Column of the patient or lesion. A group is never in two splits. Default: a column such as ``patient_id``,
    ``Patient ID`` or ``lesion_id``, otherwise the row's first image. ``none``: the first image in any case."""
    boxes: Literal[
        "auto",
        "xyxy",
        "xywh",
        "cxcywh",
        "yxyx",
        "xyxy unit",
        "xywh unit",
        "cxcywh unit",
        "yxyx unit",
        "xyxy percent",
        "xywh percent",
        "cxcywh percent",
        "yxyx percent",
        "xyxy thousand",
        "xywh thousand",
        "cxcywh thousand",
        "yxyx thousand",
    ] = "auto"
    """Format of the boxes in the rows: corners, corner and size, or centre and size. Without a unit, in pixels. unit,
    percent and thousand are 0 to 1, 100 or 1000 along each side. ``auto`` uses the only format that fits all boxes of
    a file. It stops if several fit, or none."""
    split: Split = Split()
    """Fractions to hold out if the files have no split."""
    sampling: Literal["natural", "balanced"] = "natural"
    """``balanced`` draws every class equally often in training, and every group of a class."""
    on_leak: Literal["stop", "report", "drop"] = "stop"
    """A leak between two splits: stop, report it, or drop its rows of the earlier split (train, then validation)."""
    max_dropped: float = Field(0.05, ge=0, le=1)
    """Largest fraction of unusable rows. The run stops above it."""
    limit_train: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Maximum number of training rows, drawn with the seed."""
    limit_validation: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Maximum number of validation rows, likewise."""
    limit_test: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Maximum number of test rows, likewise."""


Percentile = Annotated[float, Field(ge=0, le=100)]


class Images(Section):
    """How every image is processed, in training, evaluation and prediction alike."""

    max_side: int = Field(896, ge=16, le=65_536)
    """Maximum length of the longest side in pixels. Smaller images are not enlarged."""
    window: str | tuple[str, str, str] = "auto"
    """How more than 8 bits become 8: ``range`` of the data, ``percentile``, or the file's window (``dicom``). ``auto``
    is the file's window if there is one, otherwise the range. CT in Hounsfield units: ``hu:centre,width`` or a name
    (``lung``, ``mediastinum``, ``soft_tissue``, ``liver``, ``bone``, ``brain``, ``subdural``, ``stroke``, ``wide``).
    Three of them become red, green and blue. ``medgemma_ct`` is the three windows of MedGemma."""
    percentiles: tuple[Percentile, Percentile] = (0.5, 99.5)
    """Lower and upper percentile of ``window = "percentile"``."""
    square: Literal["auto", "off", "pad"] = "auto"
    """``pad`` enlarges every image to ``max_side`` and adds black margins to a square. ``auto`` does so for MedGemma,
    which was trained this way, and is off for other families."""
    resample: Literal["area", "bilinear", "bicubic", "lanczos", "nearest"] = "area"
    """Interpolation of the resize."""
    unreadable: Literal["stop", "skip", "placeholder"] = "stop"
    """Unreadable images: stop, skip their rows, or show a grey square. Each is counted."""
    scan: Literal["auto", "full", "header", "off"] = "auto"
    """Scan before training: ``full`` decodes every image and fills the disk cache, ``header`` reads its header and last
    bytes. ``auto`` is full for up to 20,000 images or with ``unreadable = "skip"``, otherwise header."""
    max_pixels: int = Field(120_000_000, ge=1, le=10_000_000_000)
    """Larger images are rejected before decoding (decompression bombs)."""
    max_per_question: int = Field(8, ge=1, le=1000)
    """Maximum number of images per row."""
    memory_cache_mb: int = Field(512, ge=0, le=100_000_000)
    """Size of the image cache in RAM in MB."""
    disk_cache: bool = True
    """Keep decoded images on disk."""


class Prompt(Section):
    """The text around the question."""

    system: str | None = None
    """System prompt."""
    instruction: str | None = None
    """Instruction that replaces the task's own."""
    context: tuple[str, ...] = ()
    """Columns that are shown before the question, such as Indication. No other column is shown."""
    thinking: bool = False
    """Value of ``enable_thinking`` in the model's chat template, in every stage and in exports. Without reasoning, the
    template must not open a reasoning block before an answer. With it, completions are parsed after their reasoning,
    and the reference answers of SFT must have a block such as ``<think>...</think>``."""
    chat_template: Path | None = None
    """File with a Jinja chat template that replaces that of the model, in every stage and in exports."""
