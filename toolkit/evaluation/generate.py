"""A loaded model and how it is asked: greedy answers to questions in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.sample import Sample
from toolkit.evaluation.answers import Reply
from toolkit.models import Backend, choose_backend
from toolkit.models.backend import Completion, Policy, Sampling
from toolkit.models.lengths import prompt_checker
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe


def weights_seen(weights: Path | None) -> tuple[str, list[tuple[str, int, int]]]:
    """What tells two sets of weights apart without reading them: the folder, its files with size and time of change."""
    files = sorted((weights if weights.is_dir() else weights.parent).iterdir()) if weights else []
    return str(weights), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks ``policy`` the questions that ``prompts`` puts. ``unfit`` says why one cannot be asked (None: it can)."""

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
    ) -> "Asker":
        """The recipe's model with ``weights``, ready to be asked as [evaluate] says.

        ``stored``: whole weights are asked in the precision that they are stored in, and never quantised.

        Raises:
            ModelError: it cannot be had.
        """
        backend = backend or choose_backend(recipe.model, weights)
        policy = backend.load(recipe, weights, trainable=False, mergeable=stored)
        most, tokens = recipe.model.max_tokens, recipe.evaluation.max_completion_tokens
        unfit = prompt_checker(policy.processor, prompts, most, tokens)
        return cls(backend, policy, prompts, Sampling(tokens), unfit)

    def complete(self, questions: Sequence[Sample]) -> list[Completion]:
        """One completion a question, all of them in one batch."""
        rows = [self.prompts.row(question) for question in questions]
        return [group[0] for group in self.backend.generate(self.policy, rows, self.sampling)]

    def reply(self, questions: Sequence[Sample]) -> list[Reply]:
        """One reply a question; those that cannot be asked are left out of the batch."""
        reasons = [self.unfit(question) for question in questions]
        fit = [question for question, reason in zip(questions, reasons, strict=True) if reason is None]
        completions = iter(self.complete(fit) if fit else [])
        return [Reply(next(completions)) if reason is None else Reply(_NOTHING, reason) for reason in reasons]


_NOTHING = Completion("", 0, truncated=False)
