"""The Backend protocol, with which the stages load, train and evaluate a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from toolkit.models.batch_sizes import Sizes
from toolkit.models.chat_template import Message, TurnEnd
from toolkit.models.oom import BatchLimit
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Original:
    """The files of a model beside its weights, as they were before training. Weights are saved together with them."""

    processor: Any
    config: Any
    generation: Any


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded model with its processor and the end of turn of its chat template.

    ``processor.tokenizer.eos_token`` is the end of turn, so that generation, truncation counts and the SFT target
    agree. ``forbidden`` are the image tokens, which generation suppresses.
    """

    model: Any
    processor: Any
    turn_end: TurnEnd
    forbidden: tuple[int, ...]
    trained_from: Path | None = None
    """The adapter or weights that this policy was loaded from. None: the base model."""
    original: Original | None = None
    bits: int = 32
    """Bits of the base weights: 4 and 8 are quantised, 16 is rounded, 32 is neither."""
    batch_limit: BatchLimit = field(default_factory=BatchLimit)
    """Limit of the completions per batch of ``generate``."""
    dequantised: bool = False
    """Whether the base weights were stored quantised and then dequantised. The quantisation error remains."""


@dataclass(frozen=True, slots=True)
class MergeComparison:
    """The comparison of merged matrices with base + scale * B A. Figures are the largest absolute values."""

    matrices: int
    largest_deviation: float
    largest_change: float


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt for the model: messages with image placeholders, the opened images, and for SFT the answer."""

    messages: list[Message]
    images: list[Image.Image]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion without its end of turn. ``truncated``: it reached the token limit first."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy decoding. ``count`` is the number of completions per prompt."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    count: int = 1


RowSource = Callable[[int], Row]
"""Returns the row with a number, and opens its images."""


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """The rewards for TRL.

    Attributes:
        weights: Maps reward names to weights.
        score: Takes row numbers and completions. Returns, for each completion, a mapping from reward names to values in
            [0, 1] (None: the reward does not apply), and a mapping of additional metrics for the log.
    """

    weights: Mapping[str, float]
    score: Callable[[Sequence[int], Sequence[Completion]], tuple[list[Mapping[str, float | None]], dict[str, float]]]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The arguments of a trainer. Checkpoints go to ``folder``. ``callbacks`` are callbacks of transformers."""

    recipe: Recipe
    rows: RowSource
    count: int
    folder: Path
    callbacks: Sequence[Any] = field(default=())
    scorer: RewardScorer | None = None
    """GRPO only."""
    longest: Sequence[int] = ()
    """Row numbers for the preflight step, the longest row first. Empty: no preflight step."""
    sizes: Sizes | None = None
    """Sizes into which an optimizer step is divided. None: those of the recipe."""
    rollout_limit: BatchLimit = field(default_factory=BatchLimit)
    """GRPO only: limit of completions per ``generate`` call. The trainer halves it after an out-of-memory error."""
    preflight: bool = False
    """Whether the trainer makes only the preflight step."""


@dataclass(frozen=True, slots=True)
class TrainerTraits:
    """The requirements of a backend's library on TRL's trainers. The defaults suit TRL with transformers.

    Attributes:
        changed_settings: settings that the library would otherwise rewrite, with its values.
        replaces_trl: whether the library replaces TRL's trainers with its own.
        count_flops: whether torch's FLOP counter works in a training pass.
        loss_by_tokens: whether the SFT loss divides by the answer tokens of an optimizer step. None: the library
            decides for each model.
    """

    changed_settings: Mapping[str, Any] = field(default_factory=dict)
    replaces_trl: bool = False
    count_flops: bool = True
    loss_by_tokens: bool | None = True


class Backend(Protocol):
    """Load, train, generate, save. tests/test_protocol.py tests the behaviour that backends have in common."""

    name: str

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """Load the recipe's model.

        Args:
            recipe: The run.
            weights: An adapter or a full model to continue from. None: the base model.
            trainable: Whether to prepare the model for training.
            mergeable: Whether to load without quantisation. If the recipe quantises, the stored dtype is used instead.

        Raises:
            ModelError: The model is not available, or does not support the recipe.
        """

    def load_without_model(self, recipe: Recipe) -> Policy:
        """Return a policy whose model is None, for work that needs only the processor.

        Raises:
            ModelError: The processor is not available.
        """

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "grpo"]) -> TrainerTraits:
        """Prepare a policy for the trainer of a stage, and return the requirements on that trainer.

        Raises:
            ModelError: The backend cannot train.
        """

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """Return ``sampling.count`` completions of each row, in order, in batches that fit into GPU memory.

        Raises:
            ModelError: A single completion does not fit.
        """

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """Return minus the mean log-probability of the tokens of ``row.answer`` and its end of turn. No dropout."""

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """Return the natural log-probability of each token of each row's answer, end of turn included."""

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """Load all trained weights of a checkpoint into a policy.

        Raises:
            ModelError: The checkpoint belongs to another model.
        """

    def save(self, policy: Policy, folder: Path) -> None:
        """Save the adapter (after full fine-tuning: the model) with its processor."""

    def save_merged(self, policy: Policy, folder: Path) -> MergeComparison | None:
        """Write the adapter merged into the base weights, with the processor, loadable by transformers alone.

        The policy cannot be used afterwards.

        Returns:
            The comparison of each written matrix with base + scale * B A. None if there is no adapter, or if only the
            model's completions can verify the merge.

        Raises:
            ModelError: The base is quantised (load it with ``mergeable``), or a written matrix is wrong.
        """
