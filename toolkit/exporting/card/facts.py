"""Read the content of a model card from the records of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.exporting.serving import Serving
from toolkit.models.model_paths import public_name
from toolkit.recipe import Recipe
from toolkit.runfolder import EXPORT, TRAINING_STAGES, Record, RunFolder, RunState, read_json, read_state
from toolkit.runfolder.usage import ComputeRecord, Usage, read_compute


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The content of the model card of one exported format.

    Attributes:
        format_name: adapter, merged or gguf.
        recipe: the recipe of the run.
        serving: settings of servers.
        verification: the export's record of the format.
        data: the record of the rows.
        results: the content of results.json.
        evaluation: the record of the evaluation of these weights. None: they were not evaluated.
        state: the content of run.json.
        compute: the compute record of the run.
        trained: the training stages of this run that produced the weights.
        places: folders of this machine that must not appear in the text.
    """

    format_name: str
    recipe: Recipe
    serving: Serving
    verification: Mapping[str, Any]
    data: Record
    results: Mapping[str, Any]
    evaluation: Record | None
    state: RunState
    compute: ComputeRecord
    trained: tuple[str, ...]
    places: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Return the name of the model, which is that of the run."""
        return self.recipe.run.name

    @property
    def base(self) -> str:
        """Return the public name of the base model."""
        return public_name(self.recipe.model.name)

    @property
    def verified(self) -> bool:
        """Return whether the export is verified."""
        return is_verified(self.verification)


def is_verified(record: Mapping[str, Any]) -> bool:
    """Return whether the record of a format says that it was verified."""
    return bool(record.get("questions")) and record.get("verified", True) is not False


def read_facts(
    run: RunFolder, recipe: Recipe, weights: Path, name: str, *, serving: Serving, verification: Mapping[str, Any]
) -> CardFacts:
    """Read the content of the model card of ``weights`` in the format ``name``."""
    evaluation = f"evaluate-{_evaluation_of(run, weights)}"
    return CardFacts(
        format_name=name,
        recipe=recipe,
        serving=serving,
        verification=verification,
        data=run.record("data") if run.is_done("data") else {},
        results=read_json(run.results_file) if run.results_file.is_file() else {},
        evaluation=run.record(evaluation) if run.is_done(evaluation) else None,
        state=read_state(run),
        compute=read_compute(run.compute_file),
        trained=_trained_into(run, weights),
        places=(run.path, Path.cwd(), *([Path(recipe.model.name)] if recipe.model.name.startswith("/") else ())),
    )


def _evaluation_of(run: RunFolder, weights: Path) -> str:
    """Return the name of the evaluation of these weights: that of their stage, otherwise of the base model."""
    return next((name for name in TRAINING_STAGES if run.weights_folder(name) == weights), "before")


def _trained_into(run: RunFolder, weights: Path) -> tuple[str, ...]:
    """Return the finished training stages up to that of these weights. None if another run trained them."""
    done = [name for name in TRAINING_STAGES if run.is_done(name)]
    last = [number for number, name in enumerate(done) if run.weights_folder(name) == weights]
    return tuple(done[: last[0] + 1]) if last else ()


def counted_stages(record: ComputeRecord) -> dict[str, Usage]:
    """Return stage -> usage of `toolkit run`, without the export. Later commands do not change a model card."""
    starts = tuple(start for start in record.sessions if start.command == "run")
    return {name: used for name, used in ComputeRecord(starts).stages().items() if name != EXPORT}
