"""Sections of a recipe about its stages: training, validation, rewards, evaluation and export."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolkit.recipe.base import Section
from toolkit.recipe.sections import MAX_NUMBER, MAX_TOKENS


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
