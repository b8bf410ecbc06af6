"""Stages of a recipe: settings that determine GPU memory, and the amount of work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.models.backend import HF, backend_name
from toolkit.models.chat_template import Length
from toolkit.models.families import family_of
from toolkit.models.unsloth.preload import unsupported_reasons
from toolkit.planning.architecture import Architecture
from toolkit.planning.tokens import RowSize, Tokens, row_size
from toolkit.recipe import Model, Recipe

Stage = Literal["sft", "grpo", "evaluate"]
Backend = Literal["hf", "unsloth"]
Precision = Literal["4bit", "8bit", "16bit", "32bit"]

QUANTIZED = ("4bit", "8bit")


@dataclass(frozen=True, slots=True)
class Setting:
    """One stage on one kind of GPU, as the memory formulas need it."""

    stage: Stage
    row: RowSize
    precision: Precision
    bf16: bool
    """The GPU supports bfloat16 (compute capability 8.0 or higher). Other GPUs use float32."""
    tuning: Literal["lora", "full"] = "lora"
    r: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = ()
    lora_vision: bool = False
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    rows: int = 1
    """Rows of a micro-batch in training."""
    concurrent: int = 0
    """Completions that are generated at once."""
    answer_tokens: int = 0
    """Most tokens of a completion."""
    eager: bool = False
    """Eager attention, which stores its scores."""
    backend: Backend = "hf"
    reference: Literal["none", "adapter", "model"] = "none"
    """Reference of a KL term, if it needs GPU memory of its own."""

    @property
    def trains(self) -> bool:
        """Return whether the stage trains."""
        return self.stage != "evaluate"

    @property
    def mixed(self) -> bool:
        """Return whether training runs under bfloat16 autocast."""
        return self.bf16 and self.precision != "32bit"

    @property
    def value(self) -> int:
        """Return the bytes of an activation."""
        return 2 if self.mixed else 4

    @property
    def stored(self) -> int:
        """Return the bytes of a number outside autocast: 2 with bfloat16, otherwise 4."""
        return 2 if self.mixed else 4

    @property
    def parameter(self) -> int:
        """Return the bytes of an unquantized parameter.

        Unsloth stores float16 even if it computes in float32 (``patch_model_and_tokenizer`` of unsloth_zoo 2026.10.7).
        """
        return 2 if self.backend == "unsloth" and self.precision != "32bit" else self.stored

    @property
    def tokens(self) -> int:
        """Return the tokens of a training row: prompt and answer."""
        return self.row.prompt + (self.row.answer if self.stage == "sft" else self.answer_tokens)


def planned_precision(model: Model, *, cuda: bool) -> Precision:
    """Return the precision in which the model is loaded on a machine with or without CUDA."""
    if model.precision != "auto":
        return model.precision
    return "4bit" if cuda and model.tuning == "lora" else "32bit"


def planned_backend(recipe: Recipe, *, here: bool = False) -> Backend:
    """Return the backend that trains the recipe on a GPU, as ``toolkit.models.backend`` selects it.

    ``here``: on the GPU of this machine, where Unsloth may not be installed. On another GPU it counts as installed.
    """
    model = recipe.model
    if model.backend == "unsloth":
        return "unsloth"
    named = model.backend == "hf" or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit"
    if named or unsupported_reasons(recipe):
        return "hf"
    return "hf" if here and backend_name(model) == HF else "unsloth"


def on_gpu(setting: Setting, model: Architecture, *, bf16: bool) -> Setting:
    """Return the setting on a GPU with or without bfloat16.

    Unsloth uses float16 in place of bfloat16, which has the same size, unless the model overflows in float16.
    """
    halved = setting.backend == "unsloth" and not family_of(model.model_type).overflows
    return replace(setting, bf16=bf16 or halved)


def memory_settings(
    recipe: Recipe,
    model: Architecture,
    tokens: Tokens | None,
    *,
    bf16: bool,
    evaluated: Tokens | None = None,
    backend: Backend | None = None,
) -> dict[Stage, Setting]:
    """Return stage -> memory setting on a CUDA device, with the longest of the counted rows.

    Args:
        recipe: The recipe of the run.
        model: The model's architecture.
        tokens: The tokens of the training rows. If None, those in ``evaluated`` are used, and vice versa. Without both,
            a row has no tokens, and only parameters are counted.
        bf16: Whether the GPU supports bfloat16.
        evaluated: The tokens of the evaluation rows.
        backend: The backend that trains. None: the one that ``planned_backend`` returns.
    """
    tokens, evaluated = tokens or evaluated, evaluated or tokens
    tower = model.vision
    row = prompt = evaluated_prompt = row_size(Length(0, 0, 0), tower)
    if tokens is not None:
        row = row_size(tokens.longest, tower, tokens.longest_sizes)
        prompt = row_size(tokens.longest_prompt, tower, tokens.longest_prompt_sizes)
    if evaluated is not None:
        evaluated_prompt = row_size(evaluated.longest_prompt, tower, evaluated.longest_prompt_sizes)
    found: dict[Stage, Setting] = {}
    if recipe.sft is not None:
        found["sft"] = replace(_setting(recipe, model, "sft", row, bf16=bf16), rows=recipe.sft.batch_size)
    if recipe.grpo is not None:
        found["grpo"] = replace(
            _setting(recipe, model, "grpo", prompt, bf16=bf16),
            rows=recipe.grpo.micro_batch,
            concurrent=recipe.grpo.completions_per_step,
            answer_tokens=recipe.grpo.max_completion_tokens,
            reference=_reference(recipe),
        )
    if recipe.evaluate is not None:
        found["evaluate"] = replace(
            _setting(recipe, model, "evaluate", evaluated_prompt, bf16=bf16),
            concurrent=recipe.evaluate.batch_size,
            answer_tokens=recipe.evaluate.max_completion_tokens,
        )
    chosen = backend or planned_backend(recipe)
    return {stage: on_gpu(replace(one, backend=chosen), model, bf16=bf16) for stage, one in found.items()}


def _setting(recipe: Recipe, model: Architecture, stage: Stage, row: RowSize, *, bf16: bool) -> Setting:
    """Return the setting of a stage without its numbers of rows and completions."""
    setting = Setting(
        stage=stage,
        row=row,
        precision=planned_precision(recipe.model, cuda=True),
        bf16=bf16,
        tuning=recipe.model.tuning,
        r=recipe.lora.r,
        dropout=recipe.lora.dropout,
        targets=model.target_names(recipe.lora.targets),
        lora_vision=recipe.lora.vision,
        eager=recipe.model.attention == "eager",
    )
    section = {"sft": recipe.sft, "grpo": recipe.grpo}.get(stage)
    if section is None:
        return setting
    return replace(setting, optimizer=section.optimizer, checkpointing=section.gradient_checkpointing)


def _reference(recipe: Recipe) -> Literal["none", "adapter", "model"]:
    """Return the reference of the KL term that needs GPU memory.

    TRL copies the adapter that GRPO starts from, or the whole model. A new adapter is disabled instead.
    """
    if recipe.grpo is None or recipe.grpo.beta == 0:
        return "none"
    if recipe.model.tuning == "full":
        return "model"
    return "adapter" if recipe.sft is not None or recipe.model.adapter is not None else "none"


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one stage. Fields that do not apply are 0.

    ``samples`` are rows of an optimizer step in SFT, and prompts of a step in GRPO. ``answers`` is the number of
    completions in the stage, each of at most ``answer_tokens`` tokens.
    """

    steps: int = 0
    samples: int = 0
    completions: int = 0
    answers: int = 0
    answer_tokens: int = 0
    evaluations: int = 0
    """Number of evaluations of the held-out split. ``answers`` is the number for all of them."""


def plan_work(recipe: Recipe, rows: Mapping[str, int]) -> dict[Stage, Work]:
    """Return stage (``sft``, ``grpo``, ``evaluate``) -> work, for the number of rows in each split.

    Optimizer steps are counted as the trainer of transformers does for SFT (the last batch of an epoch may be smaller),
    and as TRL's sampler does for GRPO (an epoch drops rows that do not fill a step).
    """
    found: dict[Stage, Work] = {}
    if recipe.sft is not None:
        passes = math.ceil(rows["train"] / recipe.sft.batch_size)
        steps = recipe.sft.max_steps or math.ceil(recipe.sft.epochs * math.ceil(passes / recipe.sft.accumulation))
        found["sft"] = Work(steps, min(recipe.sft.batch_size * recipe.sft.accumulation, rows["train"]))
    if recipe.grpo is not None:
        grpo = recipe.grpo
        steps = grpo.max_steps or math.ceil(grpo.epochs * (rows["train"] // grpo.prompts_per_step))
        completions = grpo.completions_per_step
        found["grpo"] = Work(steps, grpo.prompts_per_step, completions, steps * completions, grpo.max_completion_tokens)
    if recipe.evaluate is not None:
        found["evaluate"] = Work(
            answers=_evaluated_samples(recipe, rows) * evaluations(recipe),
            answer_tokens=recipe.evaluate.max_completion_tokens,
            evaluations=evaluations(recipe),
        )
    return found


def evaluations(recipe: Recipe) -> int:
    """Return the number of evaluations: before training, and after each training stage."""
    trained = sum(section is not None for section in (recipe.sft, recipe.grpo))
    before = recipe.evaluate is not None and (recipe.evaluate.before or not trained)
    return before + trained


def stages(recipe: Recipe) -> list[str]:
    """Return the stages of a run, in their order."""
    trained = [name for name in ("sft", "grpo") if getattr(recipe, name) is not None]
    found = ["evaluate before"] if recipe.evaluate and (recipe.evaluate.before or not trained) else []
    for name in trained:
        found += [name, *(["evaluate"] if recipe.evaluate else [])]
    return [*found, *(["export"] if recipe.export else [])]


def _evaluated_samples(recipe: Recipe, rows: Mapping[str, int]) -> int:
    section = recipe.evaluation
    modes = len(section.memory) if recipe.task.has_agent_memory else 1
    return modes * min(rows[section.split], section.limit or rows[section.split])
