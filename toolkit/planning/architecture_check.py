"""The check on the real architecture: its result, why it was not made, and its cache.

``toolkit.pipeline.architecture_check`` makes it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.errors import Problem
from toolkit.models import backend_name
from toolkit.models.model_paths import model_source
from toolkit.planning.cache import cached_count, find_cached, hash_processor_files
from toolkit.planning.findings import PlanFinding, warning
from toolkit.planning.model_files import find_configuration
from toolkit.planning.tokens import processor_folder
from toolkit.recipe import Recipe
from toolkit.runfolder import installed_versions

CODE = "plan.architecture_fails"
"""Code of a part that failed."""
ENDED = "plan.architecture_check_ended"
"""Code of a part that ended without a result."""
SMALL = 50_000_000
"""Bytes of weights up to which `toolkit run` does not make the check: the stages reach an error as soon."""
IRRELEVANT = ("learning_rate", "epochs", "weight_decay", "max_grad_norm", "schedule")
"""Keys of training sections that do not decide whether an architecture works."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of one part: what must hold, the value found and how to fix it."""

    part: str
    rule: str
    value: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ArchitectureCheck:
    """The result of the check.

    Attributes:
        tried: part -> seconds, for each part that succeeded.
        failures: the parts that failed.
        not_tried: part, or ``architecture`` for all of them -> the reason.
        ended: part, or ``architecture`` for all of them -> why it ended without a result, such as too little memory.
        parameters: parameters of the reduced model. 0: it was not built.
        cached: whether the result is that of an earlier check.
    """

    tried: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    not_tried: Mapping[str, str] = field(default_factory=dict)
    ended: Mapping[str, str] = field(default_factory=dict)
    parameters: int = 0
    cached: bool = False

    @property
    def unknown(self) -> Mapping[str, str]:
        """Return part, or ``architecture`` for all of them -> why nothing is known about it."""
        return {**self.not_tried, **{part: f"not tried: {reason}" for part, reason in self.ended.items()}}

    def findings(self, recipe: Recipe) -> Sequence[PlanFinding]:
        """Return the failures as problems, and the parts that ended without a result as warnings.

        Failures are certain if the run has the backend of the check, which is hf.
        """
        certain = recipe.model.backend != "unsloth" and backend_name(recipe.model) == "hf"
        failures = [PlanFinding(_problem(one), certain=certain) for one in self.failures]
        return [*failures, *(warning(_ended(part, reason)) for part, reason in self.ended.items())]

    def to_json(self) -> dict[str, object]:
        """Return the entry ``architecture`` of plan.json."""
        return {
            "tried": {part: round(seconds, 1) for part, seconds in self.tried.items()},
            "failed": [one.part for one in self.failures],
            "not_tried": dict(self.unknown),
            "parameters": self.parameters,
            "cached": self.cached,
        }


def not_tried(reason: str) -> ArchitectureCheck:
    """Return the result of a check that was not made."""
    return ArchitectureCheck(not_tried={"architecture": f"not tried: {reason}"})


def reason_not_tried(recipe: Recipe) -> str:
    """Return why the check cannot be made on this machine, or an empty text."""
    if recipe.model.trust_remote_code:
        return "the model has code of its authors"
    folder, config = files_folder(recipe), find_configuration(recipe.model)
    if folder is None or config is None or not (folder / "config.json").is_file():
        return "not downloaded"
    return ""


def is_small(recipe: Recipe) -> bool:
    """Return whether the weights of a model folder have at most ``SMALL`` bytes, as those of the tiny model."""
    folder = Path(model_source(recipe.model))
    return folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= SMALL


def files_folder(recipe: Recipe) -> Path | None:
    """Return the folder with the configuration and the processor of the model. None: they are not on this machine."""
    return processor_folder(recipe.model)


def find_check(facts: Sequence[object]) -> ArchitectureCheck | None:
    """Return the successful check of the same facts, from the cache."""
    found = find_cached(ArchitectureCheck, facts)
    return None if found is None else replace(found, cached=True)


def save_check(facts: Sequence[object], found: ArchitectureCheck) -> None:
    """Store a successful check in the cache."""
    if found.tried and not (found.failures or found.ended):
        cached_count(ArchitectureCheck, facts, lambda: found)


def check_facts(recipe: Recipe, derived: Recipe, folder: Path) -> list[object]:
    """Return everything that decides the result: files of the model, recipe, versions and code.

    Args:
        recipe: the recipe of the run.
        derived: the recipe of the check, whose model and run folder are placeholders.
        folder: of the model's files.
    """
    sections = derived.model_dump(mode="json")
    sections.pop("run")
    for section in sections.values():
        for key in IRRELEVANT if isinstance(section, dict) else ():
            section.pop(key, None)
    own_code = [*recipe.rewards.custom, *recipe.evaluation.metrics, recipe.dataset.task]
    files = sorted({Path(entry.rpartition(":")[0]) for entry in own_code if ":" in entry})
    digests = [_digest([file]) for file in files if file.is_file()]
    versions = {name: version for name, version in installed_versions().items() if name != "platform"}
    package = sorted(Path(__file__).parents[1].rglob("*.py"))
    return [hash_processor_files(folder), sections, digests, versions, _digest(package)]


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def _problem(failure: Failure) -> Problem:
    place = "[model] name" if failure.part == "model" else f"[{'export' if failure.part == 'gguf' else failure.part}]"
    rule = f"{failure.part} must work on the model's architecture, which was tried with few layers and random "
    return Problem(CODE, f"{rule}parameters: {failure.rule}", place, failure.value, failure.remedy)


def _ended(part: str, reason: str) -> Problem:
    rule = "the check on the real architecture must end with a result"
    remedy = "Free memory and run `toolkit plan RECIPE --deep`, or expect errors of the architecture in the stages."
    return Problem(ENDED, rule, "[model] name" if part == "architecture" else f"[{part}]", reason, remedy)
