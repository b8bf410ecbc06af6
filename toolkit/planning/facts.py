"""Facts of a planned run, on which its checks depend."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolkit.errors import (
    ToolkitError,
)
from toolkit.planning.architecture import Architecture
from toolkit.planning.findings import PlanFinding
from toolkit.planning.gpu import Gpu
from toolkit.planning.model_files import BaseWeights, Configuration, Repository
from toolkit.planning.stages import Backend
from toolkit.planning.tokens import Rows, Tokens
from toolkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a planned run. None: unknown.

    Attributes:
        recipe: The recipe without optional export formats that its base model does not allow.
        rows: The rows, or the error that prevents reading them.
        gpu: The GPU to plan for. None: no GPU.
        backend: The backend that trains.
        config: The model's configuration.
        repository: The repository that Unsloth loads in place of the model. None: the model itself is loaded.
        architecture: The model's architecture.
        tokens: The tokens of the training rows. If nothing is trained, those of the evaluation rows.
        evaluated: The tokens of the evaluation rows.
        pairs: The tokens of the training rows with the longer answer of their preference.
        base: The location of the model's weights.
        model_error: Why the architecture is unknown, if the configuration is known.
        row_findings: The findings about the rows whose tokens were counted.
        export_findings: The findings about the optional export formats that are left out.
    """

    recipe: Recipe
    rows: Rows | ToolkitError
    gpu: Gpu | None
    backend: Backend
    config: Configuration | None
    repository: Repository | None
    architecture: Architecture | None
    tokens: Tokens | None
    evaluated: Tokens | None
    base: BaseWeights
    pairs: Tokens | None = None
    model_error: ToolkitError | None = None
    row_findings: Sequence[PlanFinding] = ()
    export_findings: Sequence[PlanFinding] = ()

    @property
    def row_counts(self) -> Mapping[str, int] | None:
        """Return the number of rows in each split."""
        return self.rows.counts if isinstance(self.rows, Rows) else None


Check = Callable[[Facts], Iterator[PlanFinding]]
"""Yields the findings of a planned run."""
