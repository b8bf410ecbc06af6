"""What a card is written from: the run's records, as they stand on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.exporting.serving import Serving
from toolkit.models.model_paths import public_name
from toolkit.recipe import Recipe
from toolkit.runfolder import EXPORT, TRAINING_STAGES, Record, RunFolder, read_json, read_state
from toolkit.runfolder.usage import ComputeRecord, Usage, read_compute


@dataclass(frozen=True, slots=True)
class CardFacts:
    """One form of one run's weights.

    ``proof`` is the export's record of the form. ``evaluation`` is the record of the evaluation of these weights, None
    where none was asked; ``results`` is what results.json holds; ``data`` the record of the rows; ``trained`` the
    stages of this run that the weights went through.
    """

    form: str
    recipe: Recipe
    serving: Serving
    proof: Mapping[str, Any]
    data: Record
    results: Mapping[str, Any]
    evaluation: Record | None
    state: Record
    compute: ComputeRecord
    trained: tuple[str, ...]
    places: tuple[Path, ...]
    """Folders of this machine that a text may name by mistake."""

    @property
    def name(self) -> str:
        """The run's name, by which the model goes."""
        return self.recipe.run.name

    @property
    def base(self) -> str:
        """The base model as others know it."""
        return public_name(self.recipe.model.name)

    @property
    def verified(self) -> bool:
        """Whether what was written has answered questions as the run's weights did."""
        return is_verified(self.proof)


def is_verified(proof: Mapping[str, Any]) -> bool:
    """Whether an export's record of a form says that it was asked again, and passed."""
    return bool(proof.get("questions")) and proof.get("verified", True) is not False


def read_facts(
    run: RunFolder, recipe: Recipe, weights: Path, form: str, *, serving: Serving, proof: Mapping[str, Any]
) -> CardFacts:
    """The facts of one form of ``weights``, which ``run`` has trained."""
    evaluation = f"evaluate-{_evaluation_of(run, weights)}"
    return CardFacts(
        form=form,
        recipe=recipe,
        serving=serving,
        proof=proof,
        data=run.record("data") if run.is_done("data") else {},
        results=read_json(run.results_file) if run.results_file.is_file() else {},
        evaluation=run.record(evaluation) if run.is_done(evaluation) else None,
        state=read_state(run),
        compute=read_compute(run.compute_file),
        trained=_trained_into(run, weights),
        places=(run.path, Path.cwd(), *([Path(recipe.model.name)] if recipe.model.name.startswith("/") else ())),
    )


def _evaluation_of(run: RunFolder, weights: Path) -> str:
    """The name of the evaluation that asks these weights: their stage's, or that of the model as it came."""
    return next((name for name in TRAINING_STAGES if run.weights_folder(name) == weights), "before")


def _trained_into(run: RunFolder, weights: Path) -> tuple[str, ...]:
    """The finished training stages up to the one that left these weights; none where another run made them."""
    done = [name for name in TRAINING_STAGES if run.is_done(name)]
    last = [number for number, name in enumerate(done) if run.weights_folder(name) == weights]
    return tuple(done[: last[0] + 1]) if last else ()


def counted_stages(record: ComputeRecord) -> dict[str, Usage]:
    """Stage -> what `toolkit run` used for it, but for the export: exporting or evaluating again changes no card."""
    starts = tuple(start for start in record.sessions if start.command == "run")
    return {name: used for name, used in ComputeRecord(starts).stages().items() if name != EXPORT}
