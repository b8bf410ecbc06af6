"""The sections of a recipe for vision-language models: every key with its type, default and description."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Optimisation(Section):
    """Settings of SFT, DPO and GRPO."""

    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning-rate schedule."""
    warmup_steps: int = Field(0, ge=0, le=MAX_NUMBER)
    """Optimizer steps of linear warmup."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """The same as a fraction of the stage's optimizer steps, rounded up, such as 0.03. Set only one of the two."""
    weight_decay: float = Field(0.0, ge=0, le=100)
    """Weight decay of AdamW."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Optimizer, by its name in transformers."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass, which saves GPU memory."""
    max_steps: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Maximum number of optimizer steps, even if ``epochs`` are not complete."""
    vision_learning_rate: float | None = Field(None, ge=1e-12, le=10)
    """Peak learning rate of the vision tower, which must be trained (``lora.vision`` or ``tuning = "full"``). Default:
    ``learning_rate``."""
    projector_learning_rate: float | None = Field(None, ge=1e-12, le=10)
    """Peak learning rate of the projector between vision tower and language model, which must be trained. An adapter
    trains it only if it is part of the vision tower, as in Qwen. Default: ``learning_rate``."""


class Sft(Optimisation):
    """Supervised fine-tuning on the reference answers. The loss covers the answer only."""

    learning_rate: float = Field(2e-4, ge=1e-12, le=10)
    """Peak learning rate."""
    epochs: float = Field(1.0, gt=0, le=100_000)
    """Passes over the training rows."""
    batch_size: int = Field(1, ge=1, le=4096)
    """Rows per forward pass."""
    accumulation: int = Field(8, ge=1, le=65_536)
    """Forward passes per optimizer step."""
    max_grad_norm: float = Field(1.0, gt=0, le=MAX_NUMBER)
    """Gradients are clipped to this norm."""


class Dpo(Optimisation):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290), after SFT and before GRPO.

    A training row has two answers to its question. Training raises the log-probability of the chosen answer against
    that of the rejected answer, relative to the adapter that the stage starts from. It needs ``tuning = "lora"``.
    Adapter dropout is off.
    """

    rejected: str = Field(min_length=1)
    """Column of the training rows with the rejected answer, as the model would write it."""
    chosen: str | None = Field(None, min_length=1)
    """Column of the training rows with the chosen answer. Default: the answer that SFT learns."""
    learning_rate: float = Field(5e-6, ge=1e-12, le=10)
    """Peak learning rate."""
    epochs: float = Field(1.0, gt=0, le=100_000)
    """Passes over the training rows."""
    batch_size: int = Field(1, ge=1, le=4096)
    """Pairs per forward pass. A pair has two rows, one for each answer."""
    accumulation: int = Field(8, ge=1, le=65_536)
    """Forward passes per optimizer step."""
    beta: float = Field(0.1, gt=0, le=1000)
    """Weight of the log-probability ratios. A smaller value lets the policy move further from the reference."""
    max_grad_norm: float = Field(1.0, gt=0, le=MAX_NUMBER)
    """Gradients are clipped to this norm."""


class Grpo(Optimisation):
    """Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300).

    An optimizer step generates ``prompts_per_step * generations`` completions and makes one update from them.
    """

    learning_rate: float = Field(5e-6, ge=1e-12, le=10)
    """Peak learning rate."""
    epochs: float = Field(1.0, gt=0, le=100_000)
    """Passes over the training rows."""
    prompts_per_step: int = Field(2, ge=1, le=4096)
    """Prompts per optimizer step."""
    generations: int = Field(4, ge=2, le=1024)
    """Completions per prompt. They form the group in which rewards are compared."""
    micro_batch: int = Field(1, ge=1, le=4_194_304)
    """Completions per forward pass. It must divide ``prompts_per_step * generations``. With packing, a pass has
    completions of one prompt instead."""
    packing: bool | Literal["auto"] = "auto"
    """Pass a prompt through the model once per update, with all its completions in one row, instead of once per
    completion. Gradients are equal up to rounding. ``auto`` does so for Gemma 3, Qwen2.5-VL and Qwen3-VL with the hf
    backend, unless the loss is ``bnpo`` or the attention ``flash_attention_2``. It limits the completions of a row to
    1,024 tokens. ``toolkit plan`` shows the choice."""
    max_completion_tokens: int = Field(128, ge=1, le=MAX_TOKENS)
    """Maximum length of a completion in tokens."""
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """Library that generates the completions. vllm runs through Unsloth and needs one image per prompt, no adapter on
    the vision tower, and a GPU with at least 24 GB."""
    temperature: float = Field(1.0, ge=0.01, le=100)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: probability mass of the candidate tokens."""
    top_k: int = Field(0, ge=0, le=MAX_NUMBER)
    """Number of candidate tokens. 0: all tokens."""
    beta: float = Field(0.0, ge=0, le=1000)
    """Weight of the KL penalty. The reference model is the model at the start of the stage."""
    epsilon: float = Field(0.2, gt=0, le=1000)
    """Clipping range of the probability ratio. Without vLLM it has no effect: each rollout is used for one update, so
    the ratio is 1."""
    epsilon_high: float | None = Field(None, gt=0, le=1000)
    """Upper clipping range. Default: ``epsilon``. With ``loss = "cispo"`` it caps the ratio. Without vLLM it has no
    effect, like ``epsilon``."""
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"] = "dapo"
    """Loss, by its name in TRL."""
    importance: Literal["token", "sequence"] = "token"
    """Level of the probability ratio. ``sequence`` is GSPO (arXiv 2507.18071)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group or of the batch."""
    mask_truncated: bool = False
    """Leave completions that reach the token limit out of the loss."""
    resample: int = Field(0, ge=0, le=1000)
    """Extra rollouts per optimizer step, at most, that replace zero-variance groups by groups of other prompts (dynamic
    sampling, arXiv 2503.14476). 0 keeps these groups."""
    max_grad_norm: float = Field(0.2, gt=0, le=MAX_NUMBER)
    """Gradients are clipped to this norm."""
    probe_prompts: int = Field(8, ge=0, le=4096)
    """Prompts that are sampled before the first optimizer step to check that rewards differ. 0 disables the check."""
    probe_max_truncated: float = Field(0.5, ge=0, le=1)
    """Largest fraction of those completions that may reach the token limit."""
    probe_on_failure: Literal["stop", "report"] = "stop"
    """If every group has zero variance, or too many completions are truncated: stop, or only report it."""

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
        """Return the number of completions per optimizer step."""
        return self.prompts_per_step * self.generations


class Validation(Section):
    """Validation during SFT and GRPO, on a fixed sample of the validation split.

    Completions are greedy, with ``batch_size`` and ``max_completion_tokens`` of [evaluate].
    """

    every_steps: int = Field(50, ge=1, le=MAX_NUMBER)
    """Optimizer steps between two validations. The last optimizer step has one too."""
    limit: int = Field(64, ge=1, le=MAX_NUMBER)
    """Maximum number of rows, drawn with the seed."""
    metric: Literal["auto", "loss", "reward", "score"] = "auto"
    """Metric that chooses the best checkpoint and stops early. ``loss`` is that of the reference answers (SFT only),
    ``reward`` the mean weighted reward (GRPO only), ``score`` the task's primary score. ``auto`` is loss in SFT and
    reward in GRPO."""
    weights: Literal["best", "last"] = "best"
    """Weights of the stage: those of the best validated checkpoint, or those of the last optimizer step."""
    patience: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Early stopping: number of validations in a row without an improvement. Default: never stop early."""
    min_improvement: float = Field(0.0, ge=0, le=MAX_NUMBER)
    """Smallest improvement of the metric that counts for ``patience``, such as 0.01 for one point of accuracy."""


class Rewards(BaseModel):
    """Reward name -> weight, and custom rewards."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    custom: tuple[str, ...] = ()
    """Custom rewards as ``file.py:function``, each with a default weight of 1."""
    time_limit: float = Field(300.0, gt=0, le=86_400)
    """Seconds that one call of a custom reward may take. The run stops with the reward, the row and the line."""
    __pydantic_extra__: dict[str, float]

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weights that the recipe sets."""
        return dict(self.__pydantic_extra__)


class Evaluate(Section):
    """Evaluation with greedy decoding on a held-out split, before training and after each stage."""

    split: Literal["validation", "test"] = "test"
    """Split to evaluate."""
    limit: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Maximum number of rows, drawn with the seed. Not for a task with agent memory, whose episodes it would cut."""
    max_tasks: int | None = Field(None, ge=1, le=MAX_NUMBER)
    """Tasks with agent memory: maximum number of episodes, drawn with the seed, each with all of its rows."""
    memory: tuple[Literal["reference", "own", "off"], ...] = ("reference", "own")
    """Tasks with agent memory: the memory in the prompt. ``reference`` is that of the reference answers, ``own`` that
    of the model's own completions, ``off`` an ablation without agent memory."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Completions per ``generate`` call."""
    max_completion_tokens: int = Field(128, ge=1, le=MAX_TOKENS)
    """Maximum length of a completion in tokens."""
    before: bool = True
    """Evaluate the model as the run starts with it (``model.adapter`` included), before the first training stage."""
    by: tuple[str, ...] | None = None
    """Columns by whose values the score is also reported. Default: those of the task."""
    positive: str | None = None
    """Label that is compared with all others (sensitivity, specificity), such as ``mel``. Default: that of the task."""
    metrics: tuple[str, ...] = ()
    """Custom metrics as ``file.py:function``, such as scores by another model. See the page on metrics."""
    probabilities: bool = True
    """For a task with classes, such as classify: compute the probability of each class from its log-probability, for
    AUROC, calibration and thresholds."""
    bootstrap: int = Field(2000, ge=100, le=100_000)
    """Bootstrap resamples of the groups, for intervals that Wilson's formula does not cover."""


class Export(Section):
    """Export of the trained weights."""

    to: tuple[Literal["adapter", "merged", "gguf"], ...] = ("adapter", "merged")
    """Formats. ``gguf`` is converted from the merged weights, which are written too."""
    optional: tuple[Literal["gguf"], ...] = ()
    """Formats that are written only if the packages they need are installed."""
    quant: tuple[Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"], ...] = ("f16", "q8_0", "q4_k_m")
    """GGUF quantizations of the language model. The projector is always f16."""
    verify: int = Field(16, ge=0, le=100_000)
    """Held-out samples whose completions the reloaded weights must reproduce. 0 disables verification."""
    allow_dequantized: bool = False
    """Merge into the dequantized weights of a base that is stored quantized. Its rounding errors remain."""
