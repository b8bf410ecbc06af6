"""A finished run to generate from: its methods, the generator of each, the selector and the prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.errors import ModelError, RunError
from toolkit.imagegen.fitting import load_trained_state
from toolkit.imagegen.generator import Generator, load_generator
from toolkit.imagegen.lora import reset_lora
from toolkit.imagegen.lora_card import read_lora_record
from toolkit.imagegen.rating_stage import SYNTHETIC_FOLDER
from toolkit.imagegen.ratings import load_ratings
from toolkit.imagegen.results import BASE, arm_figures
from toolkit.imagegen.scorer_stage import STAGE
from toolkit.imagegen.selector import Selector
from toolkit.imagegen.settings import generator_settings, seed_of, selector_settings
from toolkit.imagegen.stage_context import load_tensors
from toolkit.imagegen.synthetic import RATINGS_FILE
from toolkit.recipe import Recipe, for_image_generators
from toolkit.recipe.imagegen import Imagegen
from toolkit.runfolder import RunFolder, find_run
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run of a recipe with [imagegen], opened to read from."""

    run: RunFolder
    recipe: Recipe
    section: Imagegen

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def methods(self) -> tuple[str, ...]:
        """The base and the recipe's methods."""
        return BASE, *self.section.update.methods

    def require(self, method: str) -> str:
        """Return a method whose generator can be used.

        Raises:
            RunError: the run has no such method, or has not finished it.
        """
        if method not in self.methods:
            rule, remedy = (
                f"the method must be one of this run's, {', '.join(self.methods)}",
                "Choose another --method.",
            )
            raise RunError("imagegen.method_unknown", rule, place=self.run.path, value=method, remedy=remedy)
        for stage in (STAGE, method):
            if not self.run.is_done(stage):
                rule, remedy = f"the stage {stage} of this run must be finished", "Finish the run with toolkit run."
                raise RunError(
                    "imagegen.stage_not_finished", rule, place=self.run.path, value="unfinished", remedy=remedy
                )
        return method

    def best_method(self) -> str:
        """Return the method with the highest mean judge score, the base excepted.

        Raises:
            RunError: a method has not finished, or has no judge score.
        """
        methods = [self.require(method) for method in self.section.update.methods]
        figures = arm_figures(self.run)
        scores = {method: figures[method].metrics.judge.value for method in methods}
        known = {method: score for method, score in scores.items() if score is not None}
        if len(known) < len(scores):
            undefined = ", ".join(method for method in scores if method not in known)
            rule, remedy = "every method must have a judge score to compare", "Name one with --method."
            raise RunError("imagegen.judge_score_undefined", rule, place=self.run.path, value=undefined, remedy=remedy)
        return max(known, key=lambda method: known[method])


def open_finished(path: Path, command: str) -> FinishedRun:
    """Return the run in ``path``.

    Args:
        path: the run folder.
        command: how the user calls it, for the error.

    Raises:
        RunError: no run is there.
        RecipeError: it is the run of a vision-language model.
    """
    run = find_run(path)
    recipe = run.recipe(TASKS)
    return FinishedRun(run, recipe, for_image_generators(recipe, command))


def prompts_by_modality(finished: FinishedRun) -> Mapping[str, tuple[str, ...]]:
    """Return the prompts that the run generates images for: the recipe's, otherwise those of the ratings.

    Raises:
        DataError: the ratings cannot be read.
    """
    section = finished.section
    if section.prompts:
        return section.prompts
    synthetic = (str(finished.run.path / SYNTHETIC_FOLDER / RATINGS_FILE),)
    return load_ratings(section, None if section.synthetic is None else synthetic).prompts


def load_base(finished: FinishedRun) -> Generator:
    """Return the run's base with a LoRA that changes nothing yet.

    Raises:
        ModelError: the base cannot be loaded.
    """
    return load_generator(generator_settings(finished.recipe, finished.device), finished.device)


def use_method(finished: FinishedRun, generator: Generator, method: str) -> None:
    """Set the generator's LoRA to that of a finished method, or for the base to one that changes nothing.

    Raises:
        ModelError: the base is not the one that the LoRA was trained on, or the LoRA cannot be read.
        RunError: the record of the LoRA is missing.
    """
    if method == BASE:
        reset_lora(generator.network, seed_of(finished.recipe, "generator"))
        return
    record = read_lora_record(finished.run, method)
    if record.base_sha256 != generator.base.sha256:
        rule = "the base must be the one that the LoRA was trained on"
        remedy = f"Restore {record.base} at revision {record.revision or record.base_sha256}."
        raise ModelError(
            "imagegen.base_changed", rule, place="imagegen.generator.model", value=generator.base.name, remedy=remedy
        )
    generator.load_lora(finished.run.weights_folder(method))


def load_selector(finished: FinishedRun) -> Selector:
    """Return the selector after stage 1, in evaluation mode.

    Raises:
        RunError: its file is missing or damaged.
    """
    section = finished.section
    selector = Selector(selector_settings(finished.recipe), len(section.rating_range), section.size)
    # Not through stage_folder, which would make the folder.
    saved = load_tensors(finished.run.path / "stages" / STAGE / "selector.pt")
    load_trained_state(selector, saved["model"])
    return selector.to(finished.device).eval()
