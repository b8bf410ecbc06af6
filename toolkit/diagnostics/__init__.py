"""Diagnose this machine: findings with remedies, and which recipes can run.

Each library is imported in its own process.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from toolkit import __version__
from toolkit.diagnostics.finding import STATES, DoctorFinding, State, merge_findings
from toolkit.diagnostics.hub import check_hub, model_to_check
from toolkit.diagnostics.libraries import LIBRARIES, check_extras, check_libraries
from toolkit.diagnostics.machine import check_driver, check_folders, check_gpus, check_machine, query_driver
from toolkit.diagnostics.probe_script import MODULES
from toolkit.diagnostics.probes import LIMIT, TOTAL, Outcome, run_probes
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen_sections import TINY_GENERATOR
from toolkit.runfolder import Progress, hide_secrets, no_progress

__all__ = ["LIBRARIES", "STATES", "DoctorFinding", "Examination", "State", "examine"]


@dataclass(frozen=True, slots=True)
class Examination:
    """Findings in the order of the checks, and their duration."""

    findings: tuple[DoctorFinding, ...]
    seconds: float

    def count(self, state: State) -> int:
        """Return the number of findings in this state."""
        return sum(one.state == state for one in self.findings)

    def to_json(self) -> dict[str, object]:
        """Return one JSON object: toolkit (version), seconds, problems, warnings and findings.

        Each finding has code (stable), name, state ("good", "warning", "problem"), found and remedy. All are text, and
        the remedy is empty if there is nothing to do.
        """
        return {
            "toolkit": __version__,
            "seconds": round(self.seconds, 1),
            "problems": self.count("problem"),
            "warnings": self.count("warning"),
            "findings": [asdict(one) for one in self.findings],
        }


def examine(
    recipe: Recipe | None = None, *, limit: float = LIMIT, total: float = TOTAL, progress: Progress = no_progress
) -> Examination:
    """Check this machine. No large library is imported into this process, and nothing is changed.

    Args:
        recipe: its model is checked. None: MedGemma.
        limit: seconds for importing one library.
        total: seconds for importing all libraries.
        progress: called as libraries have been imported.
    """
    begun = time.monotonic()
    outcomes = run_probes(tuple(MODULES), model=model_to_check(recipe), limit=limit, total=total, progress=progress)
    findings = [_without_secrets(one) for one in _findings(recipe, outcomes, os.environ)]
    gpu = bool(outcomes["torch"].report.torch.devices)
    findings.append(check_recipes(recipe, findings, gpu))
    return Examination(tuple(findings), time.monotonic() - begun)


def _findings(
    recipe: Recipe | None, outcomes: Mapping[str, Outcome], environment: Mapping[str, str]
) -> Iterator[DoctorFinding]:
    driver = query_driver()
    yield from check_machine()
    yield check_driver(driver)
    yield from check_gpus(outcomes["torch"], driver)
    yield from check_libraries(outcomes, gpu=bool(outcomes["torch"].report.torch.devices))
    yield from check_extras(outcomes, environment)
    yield from check_hub(recipe, outcomes["hub"], environment)
    yield from check_folders(environment)


def _without_secrets(finding: DoctorFinding) -> DoctorFinding:
    return replace(finding, found=hide_secrets(finding.found), remedy=hide_secrets(finding.remedy))


TINY = (
    "recipes/quickstart.toml",
    "recipes/ham10000_tiny.toml",
    "recipes/lesions_tiny.toml",
    "recipes/classify_tiny.toml",
    "recipes/detect_tiny.toml",
    "recipes/steps_tiny.toml",
    "recipes/chat_tiny.toml",
    "recipes/report_tiny.toml",
    "recipes/imagegen_tiny.toml",
)
"""Shipped recipes of the tiny model. A test checks the list."""


def check_recipes(recipe: Recipe | None, found: Sequence[DoctorFinding], gpu: bool) -> DoctorFinding:
    """Check whether the recipe can run, or report which shipped recipes can run.

    Args:
        recipe: the recipe. None: the shipped recipes.
        found: all other findings.
        gpu: whether torch can use a GPU.
    """
    broken = [one.name for one in found if one.state == "problem"]
    first = DoctorFinding(
        "doctor.problems_first", "recipes", "problem", f"blocked by: {', '.join(broken)}", "Solve them first."
    )
    if recipe is not None:
        own = _check_recipe(recipe, gpu)
        return merge_findings(own, first) if broken else own
    if broken:
        return first
    if gpu:
        return DoctorFinding("doctor.recipes_all", "recipes", "good", "all that fit the GPU memory")
    text = f"on the CPU: {', '.join(TINY)}. The others need a GPU"
    return DoctorFinding("doctor.recipes_on_cpu", "recipes", "good", text)


def _check_recipe(recipe: Recipe, gpu: bool) -> DoctorFinding:
    if recipe.imagegen is not None:
        return _image_generator(recipe.run.name, recipe.imagegen.generator.model, gpu)
    model = recipe.model
    name = f"{recipe.run.name} ({model.name}, {model.precision})"
    if gpu:
        return _can_start(name)
    if model.precision in ("4bit", "8bit"):
        remedy = (
            "Run it on a machine with a GPU. To try the recipe here: --set model.name=tiny --set model.precision=auto."
        )
        text = f"{name} needs a GPU, and torch finds none"
        return DoctorFinding("doctor.recipe_needs_gpu", "recipes", "problem", text, remedy)
    if model.backend == "unsloth":
        remedy = "Run it on a machine with a GPU, or with --set model.backend=hf."
        text = f"{name}: Unsloth needs a GPU, and torch finds none"
        return DoctorFinding("doctor.unsloth_needs_gpu", "recipes", "problem", text, remedy)
    if model.name != "tiny":
        return _slow(name, "Use a GPU. A 4B model takes minutes for a step on a CPU.")
    return DoctorFinding("doctor.recipe_on_cpu", "recipes", "good", f"{name} runs on the CPU")


def _slow(name: str, remedy: str) -> DoctorFinding:
    return DoctorFinding("doctor.recipe_slow_on_cpu", "recipes", "warning", f"{name} runs on the CPU", remedy)


def _can_start(name: str) -> DoctorFinding:
    text = f"{name} can start. Its memory is not estimated (see toolkit plan)"
    return DoctorFinding("doctor.recipe_can_start", "recipes", "good", text)


def _image_generator(run: str, model: str, gpu: bool) -> DoctorFinding:
    name = f"{run} ({model})"
    if gpu:
        return _can_start(name)
    if model != TINY_GENERATOR:
        return _slow(name, "Use a GPU. Stable Diffusion takes minutes for an image on a CPU.")
    return DoctorFinding("doctor.recipe_on_cpu", "recipes", "good", f"{name} runs on the CPU")
