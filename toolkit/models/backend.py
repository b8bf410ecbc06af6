"""The Backend protocol, with which the stages load, train and evaluate a model, and the choice of a backend.

This module imports no model library, so that Unsloth can be imported before the others.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from toolkit.data.task import Decision
from toolkit.errors import ModelError, warn
from toolkit.models.chat_template import TurnEnd
from toolkit.models.llamacpp import is_gguf
from toolkit.models.messages import Message
from toolkit.models.oom import BatchLimit, Sizes
from toolkit.recipe import Model, Recipe
from toolkit.runfolder import world_size

HF, UNSLOTH, GGUF = "hf", "unsloth", "gguf"


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
    """Bits of the base weights: 4 and 8 are quantized, 16 is rounded, 32 is neither."""
    batch_limit: BatchLimit = field(default_factory=BatchLimit)
    """Limit of the completions per batch of ``generate``."""
    dequantized: bool = False
    """Whether the base weights were stored quantized and then dequantized. The quantization error remains."""


@dataclass(frozen=True, slots=True)
class MergeComparison:
    """The comparison of merged matrices with base + scale * B A. Figures are the largest absolute values."""

    matrices: int
    largest_deviation: float
    largest_change: float


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt for the model: messages with image placeholders, the opened images, and for SFT the answer.

    For DPO, ``answer`` is the chosen answer, and ``rejected`` the other one.
    """

    messages: list[Message]
    images: list[Image.Image]
    answer: str | None = None
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion without its end of turn. ``truncated``: it reached the token limit first.

    ``probabilities`` has class -> probability if they were computed for the prompt. They do not depend on ``text``.
    """

    text: str
    tokens: int
    truncated: bool
    probabilities: Mapping[str, float] | None = None


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
    packing: bool = False
    """GRPO only: whether the completions of a prompt are in one row in training passes."""


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
            mergeable: Whether to load without quantization. If the recipe quantizes, the stored dtype is used instead.

        Raises:
            ModelError: The model is not available, or does not support the recipe.
        """

    def load_without_model(self, recipe: Recipe) -> Policy:
        """Return a policy whose model is None, for work that needs only the processor.

        Raises:
            ModelError: The processor is not available.
        """

    def prepare_training(self, policy: Policy, recipe: Recipe, stage: Literal["sft", "dpo", "grpo"]) -> TrainerTraits:
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

    def supervised_loss(self, policy: Policy, row: Row) -> tuple[float, int]:
        """Return minus the sum of the log-probabilities of the tokens that SFT learns of a row, and their number.

        These are all assistant turns with their ends of turn. No dropout.
        """

    def log_probs(self, policy: Policy, rows: Sequence[Row], answers: Sequence[str]) -> list[list[float]]:
        """Return the natural log-probability of each token of each row's answer, end of turn included."""

    def choice_log_probs(
        self, policy: Policy, rows: Sequence[Row], decisions: Sequence[Sequence[Decision]]
    ) -> list[list[dict[str, float]]]:
        """Return, for each decision of each row, option -> natural log-probability of the answer up to its text.

        The first decision begins the answer. Each later one continues the most probable option of the one before. A
        decision that ends the answer includes the end of turn, as ``log_probs`` does. Each prompt is encoded once.

        Raises:
            ModelError: A single text does not fit, or the backend cannot compute log-probabilities this way.
        """

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
            ModelError: The base is quantized (load it with ``mergeable``), or a written matrix is wrong.
        """


def choose_backend(model: Model, weights: Path | None = None) -> Backend:
    """Return the backend of the recipe. ``auto`` is resolved by ``backend_name``. A GGUF always uses llama.cpp.

    ``auto`` is hf if transformers was imported before Unsloth, because Unsloth must be imported first.

    Raises:
        ModelError: The recipe requires Unsloth, which is not available on this machine or in this process.
    """
    if weights is not None and is_gguf(weights):
        from toolkit.models.gguf import GgufBackend

        return GgufBackend()
    name = backend_name(model)
    if name == UNSLOTH and (model.backend == UNSLOTH or UNSLOTH in sys.modules):
        from toolkit.models.unsloth.backend import UnslothBackend

        return UnslothBackend()
    from toolkit.models.hf import HfBackend

    return HfBackend()


def backend_name(model: Model) -> str:
    """Return ``hf`` or ``unsloth``. ``auto`` is Unsloth for LoRA on a CUDA device if it is installed.

    ``auto`` is hf for the tiny model, several processes (``accelerate launch``) and 32-bit training.

    Raises:
        ModelError: The recipe requires Unsloth, but a CUDA device or the package is missing.
    """
    if model.backend == UNSLOTH:
        _check_unsloth_available()
        return UNSLOTH
    if model.backend == HF or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit":
        return HF
    return UNSLOTH if world_size() == 1 and _is_installed() and _has_cuda() else HF


def preload(recipe: Recipe, folder: Path, weights: Path | None = None) -> None:
    """Import Unsloth before transformers, trl and peft if the recipe uses it.

    Call it when the run folder exists, before any stage is imported. With ``auto``, Unsloth is not imported if it would
    deviate from the recipe, and ``choose_backend`` then returns hf.

    Args:
        recipe: The recipe with the backend.
        folder: The run folder, which stores the modules that Unsloth compiles.
        weights: Weights to evaluate instead of the run's own. Nothing is imported for a GGUF.

    Raises:
        ModelError: As ``backend_name``, or transformers was imported before, or the recipe requires Unsloth and has
            settings that it does not support.
    """
    if weights is not None and is_gguf(weights):
        return
    if backend_name(recipe.model) != UNSLOTH:
        return
    from toolkit.models.unsloth.preload import check_supported, start, unsupported_reasons

    if recipe.model.backend == "auto" and (reasons := unsupported_reasons(recipe)):
        warn(
            "model.backend_hf_chosen",
            f"Unsloth cannot train this recipe, so the backend is hf: {'; '.join(reasons)}",
            place="[model] backend",
            value=recipe.model.backend,
        )
        return
    check_supported(recipe)
    start(folder)


def _check_unsloth_available() -> None:
    lacking = "the package unsloth" if not _is_installed() else "a CUDA device" if not _has_cuda() else None
    if lacking:
        raise ModelError(
            "model.unsloth_unavailable",
            f'backend = "unsloth" needs {lacking}, which is missing',
            place="[model] backend",
            value=UNSLOTH,
            remedy='Set backend = "hf", which trains on any device, or "auto", which uses what is available.',
        )


def _is_installed() -> bool:
    try:
        version(UNSLOTH)
    except PackageNotFoundError:
        return False
    return True


def _has_cuda() -> bool:
    import torch

    return torch.cuda.device_count() > 0  # queries the driver's library, so it creates no CUDA context
