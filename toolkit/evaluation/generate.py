"""Generate greedy completions of a loaded model in batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sample import Sample
from toolkit.evaluation.answers import Reply
from toolkit.images import ImageStore
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Completion, Policy, Sampling
from toolkit.models.image_sizes import ProcessorSizes
from toolkit.models.lengths import HAS_SPECIAL_TOKEN, PROMPT_TOO_LONG, prompt_checker
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe

SKIP_REMEDIES: Mapping[str, str] = {
    PROMPT_TOO_LONG: "Raise model.max_tokens.",
    HAS_SPECIAL_TOKEN: "Remove special tokens from the rows, or train longer if the model generated them.",
}
"""Why a prompt was skipped -> the remedy."""


def weights_identity(weights: Path | None) -> tuple[str, list[tuple[str, int, int]]]:
    """Return what identifies weights without reading them: the folder, and its files with size and time of change."""
    files = sorted((weights if weights.is_dir() else weights.parent).iterdir()) if weights else []
    return str(weights), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


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
    return Prompts.of(recipe, ImageStore.from_recipe(section, rejection=ProcessorSizes(recipe.model)))


@dataclass(frozen=True, slots=True)
class Completer:
    """A loaded model that generates completions.

    Attributes:
        backend: the backend of the model.
        policy: the model.
        prompts: renders samples as prompts.
        sampling: the generation settings.
        unfit: returns why a prompt cannot be used, or None.
    """

    backend: Backend
    policy: Policy
    prompts: Prompts
    sampling: Sampling
    unfit: Callable[[Sample], str | None]

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
        return cls(backend, policy, prompts, Sampling(tokens), unfit)

    def complete(self, samples: Sequence[Sample]) -> list[Completion]:
        """Return one completion per sample, generated in one batch."""
        rows = [self.prompts.row(sample) for sample in samples]
        return [group[0] for group in self.backend.generate(self.policy, rows, self.sampling)]

    def reply(self, samples: Sequence[Sample]) -> list[Reply]:
        """Return one reply per sample. Prompts that do not fit are skipped."""
        reasons = [self.unfit(sample) for sample in samples]
        fit = [sample for sample, reason in zip(samples, reasons, strict=True) if reason is None]
        completions = iter(self.complete(fit) if fit else [])
        return [Reply(next(completions)) if reason is None else Reply(_NOTHING, reason) for reason in reasons]


_NOTHING = Completion("", 0, truncated=False)
