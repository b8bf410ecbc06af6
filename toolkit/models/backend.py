"""The Backend protocol: what a library must do so that the stages can train and ask a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

from toolkit.models.batch_sizes import Sizes
from toolkit.models.chat_template import Message, TurnEnd
from toolkit.models.oom import BatchLimit
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from toolkit.models.merge import MergeComparison


@dataclass(frozen=True, slots=True)
class Original:
    """What a model's own files say beside its weights, before training changes it: weights are saved with this."""

    processor: Any
    config: Any
    generation: Any


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded model with its processor, and what its chat template implies.

    ``processor.tokenizer.eos_token`` is the turn end, so that generation, truncation counts and SFT's target agree;
    ``forbidden`` are the image tokens, which generation suppresses.
    """

    model: Any
    processor: Any
    turn_end: TurnEnd
    forbidden: tuple[int, ...]
    trained_from: Path | None = None
    """The adapter or weights that this policy goes on from; None: the base model."""
    original: Original | None = None
    bits: int = 32
    """In how many bits the base weights are: 4 and 8 are quantised, 16 round, 32 do neither."""
    batch_limit: BatchLimit = field(default_factory=BatchLimit)
    """How many completions ``generate`` writes at once."""
    dequantised: bool = False
    """Whether they were stored quantised and were made whole again, with the rounding in them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt as the model sees it: messages with placeholders, the opened pictures, and SFT's answer if any."""

    messages: list[Message]
    images: list[Image.Image]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer without its turn end; ``truncated``: the token limit came first."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are generated. Temperature 0 is greedy; ``count`` answers a prompt."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    count: int = 1


RowSource = Callable[[int], Row]
"""Row number -> Row; pictures are opened when the row is asked for."""


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """Scores for TRL: reward names with their weights, and a function over row numbers and completions.

    ``score`` gives, for each completion, name -> value in [0, 1] or None where the reward does not apply, and may put
    figures of its own into the log through the mapping that ``score`` returns second.
    """

    weights: Mapping[str, float]
    score: Callable[[Sequence[int], Sequence[Completion]], tuple[list[Mapping[str, float | None]], dict[str, float]]]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What a trainer is built from. ``folder`` takes checkpoints; ``callbacks`` are transformers' callbacks."""

    recipe: Recipe
    rows: RowSource
    count: int
    folder: Path
    callbacks: Sequence[Any] = field(default=())
    scorer: RewardScorer | None = None
    """GRPO only."""
    longest: Sequence[int] = ()
    """Numbers of rows, the longest first, for the preflight step; empty: there is none."""
    sizes: Sizes | None = None
    """How a step is divided; None: as the recipe says."""
    rollout_limit: BatchLimit = field(default_factory=BatchLimit)
    """GRPO only: completions per ``generate`` call. The trainer halves it after an out-of-memory error."""
    preflight: bool = False
    """Whether the trainer is built for the preflight step alone."""


@dataclass(frozen=True, slots=True)
class TrainerTraits:
    """How a backend's library needs TRL's trainers. The defaults are those of TRL with transformers.

    Attributes:
        changed_settings: settings that the library would rewrite, as it rewrites them.
        replaces_trl: whether the library replaces TRL's trainers by its own.
        count_flops: whether torch's FLOP counter works in a training pass.
        loss_by_tokens: whether the SFT loss divides by the answer tokens of an optimizer step. None: the library
            decides for each model.
    """

    changed_settings: Mapping[str, Any] = field(default_factory=dict)
    replaces_trl: bool = False
    count_flops: bool = True
    loss_by_tokens: bool | None = True


class Backend(Protocol):
    """Load, train, ask, save. tests/test_backends.py holds what both must do."""

    name: str

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        """The recipe's model, going on from ``weights`` (an adapter or a full model) where given.

        ``mergeable``: never quantised. Where the recipe quantises, the weights are loaded as they are stored.

        Raises:
            ModelError: the model cannot be had, or cannot do what the recipe asks.
        """

    def load_without_model(self, recipe: Recipe) -> Policy:
        """The policy without its model, which is None: for what needs the processor alone.

        Raises:
            ModelError: the processor cannot be had.
        """

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "grpo"]) -> TrainerTraits:
        """Prepare a policy for the trainer of a stage, and return how the library needs that trainer.

        Raises:
            ModelError: the backend cannot train.
        """

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        """``sampling.count`` completions of each row, in order, as many at once as the memory holds.

        Raises:
            ModelError: it does not hold one.
        """

    def answer_loss(self, policy: Policy, row: Row) -> float:
        """Minus the mean log-probability of the tokens of ``row.answer`` and its turn end, without dropout."""

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """The natural logarithm of the probability of each token of each row's answer, its turn end included."""

    def restore(self, policy: Policy, checkpoint: Path) -> None:
        """Put a checkpoint's weights, all of those that are trained, into a policy.

        Raises:
            ModelError: they are another model's.
        """

    def save(self, policy: Policy, folder: Path) -> None:
        """The adapter (or the whole model after full fine-tuning) with its processor."""

    def save_merged(self, policy: Policy, folder: Path) -> "MergeComparison | None":
        """Write the adapter merged into the base weights, with the processor, loadable by transformers alone.

        The policy is used up. Returns what the comparison of each written matrix with base + scale * B A found; None
        if there is no adapter, or if its merge can only be verified by the model's answers.

        Raises:
            ModelError: the base is quantised (load it ``mergeable``), or a written matrix is wrong.
        """
