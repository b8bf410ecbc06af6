"""What of a recipe, its rows and the card the memory of one stage depends on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from toolkit.models.chat_template import Length
from toolkit.models.choose import HF, backend_name
from toolkit.models.unsloth.limits import refusals
from toolkit.planning.architecture import Architecture
from toolkit.planning.tokens import RowSize, Tokens, row_size
from toolkit.recipe import Model, Recipe

Stage = Literal["sft", "grpo", "evaluate"]
Precision = Literal["4bit", "8bit", "16bit", "32bit"]

QUANTISED = ("4bit", "8bit")


@dataclass(frozen=True, slots=True)
class Setting:
    """One stage on one kind of card."""

    stage: Stage
    row: RowSize
    precision: Precision
    bf16: bool
    """The card computes in bfloat16 (compute capability 8.0 and above); others take float32."""
    tuning: Literal["lora", "full"] = "lora"
    r: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = ()
    lora_vision: bool = False
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    rows: int = 1
    """Rows that pass through the model at once in training."""
    concurrent: int = 0
    """Answers that are written at once."""
    answer_tokens: int = 0
    """Tokens at most of an answer that the model writes."""
    eager: bool = False
    """Attention holds its scores."""
    backend: Literal["hf", "unsloth"] = "hf"
    reference: Literal["none", "adapter", "model"] = "none"
    """What a KL term is measured against, as far as it takes memory of its own."""

    @property
    def trains(self) -> bool:
        """Whether weights change."""
        return self.stage != "evaluate"

    @property
    def mixed(self) -> bool:
        """Training computes in bfloat16 by autocast (``backends.settings.mixed_precision``)."""
        return self.bf16 and self.precision != "32bit"

    @property
    def value(self) -> int:
        """Bytes of an activation."""
        return 2 if self.mixed else 4

    @property
    def stored(self) -> int:
        """Bytes of a number outside of autocast: bfloat16, or float32 without it (``backends.loading``)."""
        return 2 if self.mixed else 4

    @property
    def held(self) -> int:
        """Bytes of a weight that is not quantised. Unsloth holds float16 where it computes in float32
        (``patch_model_and_tokenizer`` of unsloth_zoo 2026.10.7).
        """
        return 2 if self.backend == "unsloth" and self.precision != "32bit" else self.stored

    @property
    def tokens(self) -> int:
        """Tokens of a row in training: prompt and answer."""
        return self.row.prompt + (self.row.answer if self.stage == "sft" else self.answer_tokens)


OVERFLOWING = ("gemma3", "gemma4", "qwen3_5")
"""Model types that Unsloth computes in float32 on a GPU without bfloat16 (unsloth_zoo's ``FORCE_FLOAT32``)."""


def planned_precision(model: Model, *, cuda: bool) -> Precision:
    """4bit, 8bit, 16bit or 32bit: what loading makes of the recipe's precision on such a machine."""
    if model.precision != "auto":
        return model.precision
    return "4bit" if cuda and model.tuning == "lora" else "32bit"


def planned_backend(recipe: Recipe, *, here: bool = False) -> Literal["hf", "unsloth"]:
    """Return the backend that trains the recipe on a GPU, as ``backends.choice`` chooses it.

    ``here``: on the GPU of this machine, where Unsloth may be missing. On another GPU it is taken to be installed.
    """
    model = recipe.model
    if model.backend == "unsloth":
        return "unsloth"
    named = model.backend == "hf" or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit"
    if named or refusals(recipe):
        return "hf"
    return "hf" if here and backend_name(model) == HF else "unsloth"


def on_gpu(setting: Setting, model: Architecture, *, bf16: bool) -> Setting:
    """Return the setting on a GPU with or without bfloat16. Unsloth takes float16 in its place, which has the same
    size, unless the model overflows in it.
    """
    halved = setting.backend == "unsloth" and not model.model_type.startswith(OVERFLOWING)
    return replace(setting, bf16=bf16 or halved)


def memory_settings(
    recipe: Recipe,
    model: Architecture,
    tokens: Tokens | None,
    *,
    bf16: bool,
    asked: Tokens | None = None,
    backend: Literal["hf", "unsloth"] | None = None,
) -> dict[Stage, Setting]:
    """Stage -> what its memory depends on, on a CUDA device, with the longest of the rows that were counted.

    ``tokens`` are of the rows to train on, ``asked`` of those that are evaluated; each stands in for the other. Without
    tokens a row has none: what the weights take is known all the same. ``backend`` None is ``planned_backend``'s.
    """
    tokens, asked = tokens or asked, asked or tokens
    tower = model.vision
    row = prompt = asked_prompt = row_size(Length(0, 0, 0), tower)
    if tokens is not None:
        row = row_size(tokens.longest, tower, tokens.longest_sizes)
        prompt = row_size(tokens.longest_prompt, tower, tokens.longest_prompt_sizes)
    if asked is not None:
        asked_prompt = row_size(asked.longest_prompt, tower, asked.longest_prompt_sizes)
    found: dict[Stage, Setting] = {}
    if recipe.sft is not None:
        found["sft"] = _setting(recipe, "sft", row, bf16=bf16, rows=recipe.sft.batch_size)
    if recipe.grpo is not None:
        found["grpo"] = _setting(
            recipe,
            "grpo",
            prompt,
            bf16=bf16,
            rows=recipe.grpo.micro_batch,
            concurrent=recipe.grpo.completions_per_step,
            answer_tokens=recipe.grpo.max_completion_tokens,
            reference=_reference(recipe),
        )
    if recipe.evaluate is not None:
        found["evaluate"] = _setting(
            recipe,
            "evaluate",
            asked_prompt,
            bf16=bf16,
            concurrent=recipe.evaluate.batch_size,
            answer_tokens=recipe.evaluate.max_completion_tokens,
        )
    chosen = backend or planned_backend(recipe)
    return {stage: on_gpu(replace(one, backend=chosen), model, bf16=bf16) for stage, one in found.items()}


def _setting(recipe: Recipe, stage: Stage, longest: RowSize, **more: object) -> Setting:
    section = {"sft": recipe.sft, "grpo": recipe.grpo}.get(stage)
    optimisation: Mapping[str, object] = (
        {} if section is None else {"optimizer": section.optimizer, "checkpointing": section.gradient_checkpointing}
    )
    return Setting(
        stage=stage,
        row=longest,
        precision=planned_precision(recipe.model, cuda=True),
        tuning=recipe.model.tuning,
        r=recipe.lora.r,
        dropout=recipe.lora.dropout,
        targets=recipe.lora.targets,
        lora_vision=recipe.lora.vision,
        eager=recipe.model.attention == "eager",
        **cast(Mapping[str, object], {**optimisation, **more}),  # type: ignore[arg-type]
    )


def _reference(recipe: Recipe) -> str:
    """TRL keeps a copy of the adapter that GRPO goes on from, or of the whole model; a new adapter it switches off."""
    if recipe.grpo is None or recipe.grpo.beta == 0:
        return "none"
    if recipe.model.tuning == "full":
        return "model"
    return "adapter" if recipe.sft is not None or recipe.model.adapter is not None else "none"


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one stage. What does not apply is 0.

    ``samples`` are rows a step in SFT and prompts a step in GRPO; ``answers`` is how many the model writes in the whole
    stage, each of at most ``answer_tokens`` tokens.
    """

    steps: int = 0
    samples: int = 0
    completions: int = 0
    answers: int = 0
    answer_tokens: int = 0
    evaluations: int = 0
    """How often the held-out split is evaluated, with ``answers`` for all of them together."""


def plan_work(recipe: Recipe, rows: Mapping[str, int]) -> dict[str, Work]:
    """Stage (``sft``, ``grpo``, ``evaluate``) -> its work, for so many rows of each split.

    Steps are counted as transformers' trainer does for SFT (the last pass of an epoch may be smaller) and as TRL's
    sampler does for GRPO (an epoch leaves out what does not fill a step).
    """
    found = {}
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
            answers=_questions(recipe, rows) * evaluations(recipe),
            answer_tokens=recipe.evaluate.max_completion_tokens,
            evaluations=evaluations(recipe),
        )
    return found


def evaluations(recipe: Recipe) -> int:
    """How often the held-out questions are asked: before training, and after each training stage."""
    trained = sum(section is not None for section in (recipe.sft, recipe.grpo))
    before = recipe.evaluate is not None and (recipe.evaluate.before or not trained)
    return before + trained


def stages(recipe: Recipe) -> list[str]:
    """The stages of a run, in their order."""
    trained = [name for name in ("sft", "grpo") if getattr(recipe, name) is not None]
    found = ["evaluate before"] if recipe.evaluate and (recipe.evaluate.before or not trained) else []
    for name in trained:
        found += [name, *(["evaluate"] if recipe.evaluate else [])]
    return [*found, *(["export"] if recipe.export else [])]


def _questions(recipe: Recipe, rows: Mapping[str, int]) -> int:
    section = recipe.evaluation
    ways = len(section.memory) if recipe.data.task == "steps" else 1
    return ways * min(rows[section.split], section.limit or rows[section.split])
