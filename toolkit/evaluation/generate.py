"""Generate greedy completions of a loaded model in batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.sample import Sample
from toolkit.errors import warn
from toolkit.evaluation.answers import Reply
from toolkit.images import ImageStore
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import GGUF, Completion, Policy, Row, Sampling
from toolkit.models.image_sizes import ProcessorSizes
from toolkit.models.lengths import HAS_SPECIAL_TOKEN, PROMPT_TOO_LONG, prompt_checker
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.tasks import Task

SKIP_REMEDIES: Mapping[str, str] = {
    PROMPT_TOO_LONG: "Raise model.max_tokens.",
    HAS_SPECIAL_TOKEN: "Remove special tokens from the rows, or train longer if the model generated them.",
}
"""Why a prompt was skipped -> the remedy."""


def weights_identity(weights: Path | None) -> tuple[str, list[tuple[str, int, int]]]:
    """Return what identifies weights without reading them: the folder, and its files with size and time of change."""
    files = sorted((weights if weights.is_dir() else weights.parent).iterdir()) if weights else []
    return str(weights), [(file.name, *file_state(file)) for file in files]


def file_state(file: Path) -> tuple[int, int]:
    """Return what identifies the content of a file without reading it: its size and time of change. 0 if missing."""
    if not file.exists():
        return 0, 0
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


def is_whole_model(weights: Path | None) -> bool:
    """Return whether ``weights`` are a whole model, such as a merged export, and not an adapter or a GGUF file."""
    return weights is not None and (weights / "config.json").is_file()


def prompts_of_readable_images(recipe: Recipe, **images: int) -> Prompts:
    """Return prompts that raise ImageError for an unreadable image. A prediction on a grey square would be meaningless.

    Args:
        recipe: the recipe.
        images: other keys of [images].
    """
    section = recipe.images.model_copy(update={"unreadable": "stop", **images})
    return Prompts.of(recipe, ImageStore.from_recipe(section, recipe.model, rejection=ProcessorSizes(recipe.model)))


@dataclass(frozen=True, slots=True)
class Completer:
    """A loaded model that generates completions.

    Attributes:
        backend: the backend of the model.
        policy: the model.
        prompts: renders samples as prompts.
        sampling: the generation settings.
        unfit: returns why a prompt cannot be used, or None.
        probabilities: whether completions have class probabilities. The task must have ``choices``.
    """

    backend: Backend
    policy: Policy
    prompts: Prompts
    sampling: Sampling
    unfit: Callable[[Sample], str | None]
    probabilities: bool = False

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        prompts: Prompts,
        weights: Path | None,
        backend: Backend | None = None,
        *,
        stored: bool = False,
    ) -> "Completer":
        """Load the recipe's model with ``weights`` and the settings of [evaluate].

        Args:
            recipe: the recipe.
            prompts: renders samples as prompts.
            weights: the weights. None: the base model.
            backend: loads the model. Default: that of the recipe.
            stored: use merged weights in their stored precision, without quantization.

        Raises:
            ModelError: the model is not available.
        """
        backend = backend or choose_backend(recipe.model, weights)
        policy = backend.load(recipe, weights, trainable=False, mergeable=stored)
        most, tokens = recipe.model.max_tokens, recipe.evaluation.max_completion_tokens
        unfit = prompt_checker(policy.processor, prompts, most, tokens)
        probabilities = computes_probabilities(recipe, prompts.task) and _supports_probabilities(backend)
        return cls(backend, policy, prompts, Sampling(tokens), unfit, probabilities)

    def complete(self, samples: Sequence[Sample]) -> list[Completion]:
        """Return one completion per sample, generated in one batch."""
        rows = [self.prompts.row(sample) for sample in samples]
        completions = [group[0] for group in self.backend.generate(self.policy, rows, self.sampling)]
        if not self.probabilities:
            return completions
        found = self._choose(samples, rows)
        return [replace(one, probabilities=chosen) for one, chosen in zip(completions, found, strict=True)]

    def choose(self, samples: Sequence[Sample]) -> list[Mapping[str, float]]:
        """Return class -> probability for each sample, without a completion."""
        return self._choose(samples, [self.prompts.row(sample) for sample in samples])

    def _choose(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Mapping[str, float]]:
        choices = self.prompts.task.choices
        decisions = [choices(sample) if choices else () for sample in samples]
        found = self.backend.choice_log_probs(self.policy, rows, decisions)
        return [class_probabilities(of_sample) for of_sample in found]

    def reply(self, samples: Sequence[Sample]) -> list[Reply]:
        """Return one reply per sample. Prompts that do not fit are skipped."""
        reasons = [self.unfit(sample) for sample in samples]
        fit = [sample for sample, reason in zip(samples, reasons, strict=True) if reason is None]
        completions = iter(self.complete(fit) if fit else [])
        return [Reply(next(completions)) if reason is None else Reply(_NOTHING, reason) for reason in reasons]


def computes_probabilities(recipe: Recipe, task: Task) -> bool:
    """Return whether the recipe wants class probabilities, and its task has classes."""
    return task.choices is not None and recipe.evaluation.probabilities


def class_probabilities(decisions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return class -> probability from option -> log-probability of each decision. The option "" is no class.

    >>> class_probabilities([{"edema": -1.0, "": -1.0}, {"effusion": 0.0, "": -99.0}])
    {'edema': 0.5, 'effusion': 1.0}
    """
    found: dict[str, float] = {}
    for log_probs in decisions:
        top = max(log_probs.values())
        weights = {name: math.exp(value - top) for name, value in log_probs.items()}
        found |= {name: weight / sum(weights.values()) for name, weight in weights.items() if name}
    return found


def _supports_probabilities(backend: Backend) -> bool:
    """Return whether the backend computes class probabilities, and warn if it does not."""
    if backend.name != GGUF:
        return True
    warn(
        "evaluate.probabilities_not_available",
        "class probabilities need a model that is not a GGUF file, so there is no AUROC and no calibration",
        place="[evaluate] probabilities",
        value=GGUF,
        remedy="Evaluate the merged weights.",
    )
    return False


_NOTHING = Completion("", 0, truncated=False)
