"""Stages of a recipe: settings that determine GPU memory, and the amount of work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.errors import ModelError
from toolkit.models.backend import HF, backend_name
from toolkit.models.families import family_of
from toolkit.models.image_tokens import Length
from toolkit.models.packing import not_packed_reasons, packed_completions
from toolkit.models.unsloth.preload import unsupported_reasons
from toolkit.planning.architecture import Architecture
from toolkit.planning.tokens import RowSize, Tokens, row_size
from toolkit.recipe import Dpo, Model, Recipe, Sft

Stage = Literal["sft", "dpo", "grpo", "evaluate"]
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
    dora: bool = False
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    rows: int = 1
    """Rows of a micro-batch in training. DPO has two rows for each pair."""
    packed: int = 1
    """Completions in a training row, after one prompt (``toolkit.models.packed_prompts``)."""
    concurrent: int = 0
    """Completions that are generated at once."""
    answer_tokens: int = 0
    """Most tokens of a completion."""
    eager: bool = False
    """Eager attention, which stores its scores."""
    backend: Backend = "hf"
    reference: Literal["none", "adapter", "model"] = "none"
    """Reference of a KL term or of DPO, if it needs GPU memory of its own."""
    validated: tuple[int, int] | None = None
    """Completions at once, and tokens of a completion, in validations within the stage. None: there are none."""

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
        """Return the tokens of a training row: prompt and answer, or prompt and all its completions."""
        return self.row.prompt + (self.packed * self.answer_tokens if self.stage == "grpo" else self.row.answer)


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


def memory_settings(  # noqa: PLR0913 (the tokens of three kinds of rows)
    recipe: Recipe,
    model: Architecture,
    tokens: Tokens | None,
    *,
    bf16: bool,
    evaluated: Tokens | None = None,
    pairs: Tokens | None = None,
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
        pairs: The tokens of the training rows with the longer answer of their preference. None: as ``tokens``.
        backend: The backend that trains. None: the one that ``planned_backend`` returns.
    """
    tokens, evaluated = tokens or evaluated, evaluated or tokens
    pairs = pairs or tokens
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
    chosen = backend or planned_backend(recipe)
    if recipe.dpo is not None:
        pair = row if pairs is None else row_size(pairs.longest, tower, pairs.longest_sizes)
        setting = _setting(recipe, model, "dpo", pair, bf16=bf16)
        found["dpo"] = replace(setting, rows=2 * recipe.dpo.batch_size, reference="adapter")
    if recipe.grpo is not None:
        packed = plan_packing(recipe, chosen, model.model_type).completions
        found["grpo"] = replace(
            _setting(recipe, model, "grpo", prompt, bf16=bf16),
            rows=recipe.grpo.micro_batch if packed == 1 else 1,
            packed=packed,
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
    return {stage: on_gpu(replace(one, backend=chosen), model, bf16=bf16) for stage, one in found.items()}


@dataclass(frozen=True, slots=True)
class Packing:
    """The completions in a training row of GRPO. 1: prompts are not packed, for ``reasons``."""

    completions: int
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the entry ``packing`` of plan.json."""
        return {"completions": self.completions, "reasons": list(self.reasons)}


def plan_packing(recipe: Recipe, backend: Backend, model_type: str) -> Packing:
    """Return the packing of a recipe with a section [grpo], as training selects it."""
    wanted = recipe.grpo_settings
    try:
        reasons = not_packed_reasons(recipe, backend, model_type)
    except ModelError as error:
        reasons = (error.rule,)
    return Packing(1 if reasons else packed_completions(wanted), reasons)


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
        dora=recipe.lora.dora,
        eager=recipe.model.attention == "eager",
    )
    section = recipe.training.get(stage)
    if section is None:
        return setting
    answers = recipe.evaluation
    return replace(
        setting,
        optimizer=section.optimizer,
        checkpointing=section.gradient_checkpointing,
        validated=(answers.batch_size, answers.max_completion_tokens) if recipe.validation else None,
    )


def _reference(recipe: Recipe) -> Literal["none", "adapter", "model"]:
    """Return the reference of the KL term that needs GPU memory.

    TRL copies the adapter that GRPO starts from, or the whole model. A new adapter is disabled instead.
    """
    if recipe.grpo is None or recipe.grpo.beta == 0:
        return "none"
    if recipe.model.tuning == "full":
        return "model"
    return "adapter" if recipe.sft or recipe.dpo or recipe.model.adapter is not None else "none"


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one stage. Fields that do not apply are 0.

    ``samples`` are rows of an optimizer step in SFT, pairs in DPO, and prompts in GRPO. ``answers`` is the number of
    completions in the stage, each of at most ``answer_tokens`` tokens.
    """

    steps: int = 0
    samples: int = 0
    completions: int = 0
    answers: int = 0
    answer_tokens: int = 0
    evaluations: int = 0
    """Number of evaluations of the held-out split. ``answers`` is the number for all of them."""
    extra_rollouts: int = 0
    """Largest number of further rollouts of a GRPO step, which ``answers`` does not include."""
    validations: int = 0
    """Number of validations within the stage, if it does not stop early."""
    validated: int = 0
    """Rows of each validation."""


def plan_work(recipe: Recipe, rows: Mapping[str, int]) -> dict[Stage, Work]:
    """Return stage (``sft``, ``dpo``, ``grpo``, ``evaluate``) -> work, for the number of rows in each split.

    Optimizer steps are counted as the trainer of transformers does for SFT and DPO (the last batch of an epoch may be
    smaller), and as TRL's sampler does for GRPO (an epoch drops rows that do not fill a step).
    """
    found: dict[Stage, Work] = {}
    if recipe.sft is not None:
        found["sft"] = _work_in_batches(recipe, recipe.sft, rows)
    if recipe.dpo is not None:
        found["dpo"] = _work_in_batches(recipe, recipe.dpo, rows)
    if recipe.grpo is not None:
        grpo = recipe.grpo
        steps = grpo.max_steps or math.ceil(grpo.epochs * (rows["train"] // grpo.prompts_per_step))
        completions = grpo.completions_per_step
        found["grpo"] = Work(
            steps,
            grpo.prompts_per_step,
            completions,
            steps * completions,
            grpo.max_completion_tokens,
            extra_rollouts=grpo.resample,
            **_validated(recipe, rows, steps),
        )
    if recipe.evaluate is not None:
        found["evaluate"] = Work(
            answers=_evaluated_samples(recipe, rows) * evaluations(recipe),
            answer_tokens=recipe.evaluate.max_completion_tokens,
            evaluations=evaluations(recipe),
        )
    return found


def _work_in_batches(recipe: Recipe, section: Sft | Dpo, rows: Mapping[str, int]) -> Work:
    passes = math.ceil(rows["train"] / section.batch_size)
    steps = section.max_steps or math.ceil(section.epochs * math.ceil(passes / section.accumulation))
    validated = _validated(recipe, rows, steps) if section is recipe.sft else {}
    return Work(steps, min(section.batch_size * section.accumulation, rows["train"]), **validated)


def _validated(recipe: Recipe, rows: Mapping[str, int], steps: int) -> dict[str, int]:
    """Return the validations of a stage and their rows. The last optimizer step has one too."""
    section = recipe.validation
    if section is None:
        return {}
    return {
        "validations": math.ceil(steps / section.every_steps),
        "validated": min(section.limit, rows["validation"]),
    }


def evaluations(recipe: Recipe) -> int:
    """Return the number of evaluations: before training, and after each training stage."""
    trained = len(recipe.training)
    before = recipe.evaluate is not None and (recipe.evaluate.before or not trained)
    return before + trained


def stages(recipe: Recipe) -> list[str]:
    """Return the stages of a run, in their order."""
    trained = list(recipe.training)
    found = ["evaluate before"] if recipe.evaluate and (recipe.evaluate.before or not trained) else []
    for name in trained:
        found += [name, *(["evaluate"] if recipe.evaluate else [])]
    return [*found, *(["export"] if recipe.export else [])]


def _evaluated_samples(recipe: Recipe, rows: Mapping[str, int]) -> int:
    section = recipe.evaluation
    modes = len(section.memory) if recipe.task.has_agent_memory else 1
    return modes * min(rows[section.split], section.limit or rows[section.split])
