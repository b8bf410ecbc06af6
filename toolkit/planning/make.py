"""Build a plan from the recipe, its rows, its model, this machine and the Hub's cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from toolkit.data.loading import DataSplits, SampleSet
from toolkit.errors import ToolkitError
from toolkit.images import ImageStore
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.cache import cached_count
from toolkit.planning.checks import (
    RunFacts,
    check_backend,
    check_bitsandbytes,
    check_evaluation_prompts,
    check_export,
    check_files,
    check_gpu_memory,
    check_model,
    check_rows,
    check_tokens,
    find_warnings,
)
from toolkit.planning.disk import Downloads, check_disk, plan_disk
from toolkit.planning.duration import StageTime, mean_setting, stage_times
from toolkit.planning.findings import Finding
from toolkit.planning.gpu import COMMON, Gpu, figures_of, usable_bytes
from toolkit.planning.memory import estimate, first_fit
from toolkit.planning.memory.weights import trained_parameters
from toolkit.planning.model_files import (
    BaseWeights,
    Configuration,
    check_base,
    drop_optional_formats,
    find_base,
    find_configuration,
)
from toolkit.planning.plan import Plan, StageMemory
from toolkit.planning.prequantised import KEPT, Query, Repository, find_repository, fraction_kept, keep_fraction
from toolkit.planning.stages import (
    Setting,
    Work,
    memory_settings,
    on_gpu,
    plan_work,
    planned_backend,
    planned_precision,
    stages,
)
from toolkit.planning.tokens import Tokens, evaluation_rows, examine_rows, longest_possible_row, training_rows
from toolkit.recipe import Recipe
from toolkit.runfolder import untested_versions

GPU_SIZES = (8, 12, 16, 24)
"""Nominal GB of the GPUs that every plan includes."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that a plan examines: those of the recipe, or synthetic rows.

    ``rows`` is the number of rows in each split.
    """

    data: DataSplits
    images: ImageStore
    rows: Mapping[str, int]
    practice: bool = False


@dataclass
class _Facts:
    """Facts that are known, and the reasons for those that are unknown."""

    config: Configuration | None = None
    model: Architecture | None = None
    tokens: Tokens | None = None
    """Tokens of the training rows. If nothing is trained, those of the evaluation rows."""
    evaluated: Tokens | None = None
    """Tokens of the evaluation rows."""
    findings: list[Finding] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    repository: Repository | None = None
    """Repository that Unsloth loads in place of the model."""

    def attempt(self, what: str, find: Callable[[], Found]) -> Found | None:
        """Return the result of ``find``. If it raises a ToolkitError, note the reason and return None."""
        try:
            return find()
        except ToolkitError as error:
            self.unknown[what] = str(error)
            return None

    def examine(self, recipe: Recipe, rows: "Rows", samples: SampleSet | None) -> Tokens | None:
        """Return the tokens of a split, and note findings about its rows."""
        if not samples:
            return None
        found = examine_rows(recipe, samples, rows.images, self.model)
        self.findings += found.findings
        if found.tokens is None:
            self.unknown.setdefault("tokens", found.unknown)
        return found.tokens


def make_plan(
    recipe: Recipe,
    rows: Rows | ToolkitError,
    gpu: Gpu | None,
    query: Callable[[Any], BaseWeights] | None = None,
    query_repository: Query | None = None,
) -> Plan:
    """Return the plan of a recipe.

    Args:
        recipe: a valid recipe.
        rows: its rows, or the error that prevents reading them.
        gpu: the GPU to plan for. None: no GPU.
        query: queries the Hub for the model (default: one request). It is not called with ``HF_HUB_OFFLINE=1``.
        query_repository: queries the Hub for the repository that Unsloth loads (default: two requests).
    """
    backend = planned_backend(recipe, here=gpu is not None and gpu.here)
    facts = _collect_facts(recipe, rows, backend == "unsloth", query_repository)
    recipe, dropped = drop_optional_formats(recipe, facts.config)
    model, tokens = facts.model, facts.tokens
    bf16 = gpu is None or gpu.bf16
    settings: Mapping[Any, Setting] = {}
    if model is not None:
        settings = memory_settings(recipe, model, tokens, bf16=bf16, evaluated=facts.evaluated, backend=backend)
    memory = {}
    if model is not None and tokens is not None:
        memory = {str(name): _stage_memory(recipe, model, one, gpu) for name, one in settings.items()}
    base = find_base(recipe.model, query)
    disk = None if model is None else plan_disk(recipe, model, settings, Downloads(base.state, facts.repository))
    known_rows = rows.rows if isinstance(rows, Rows) else None
    work = None if known_rows is None else plan_work(recipe, known_rows)
    findings: list[Finding] = [
        *check_rows(recipe, rows.rows if isinstance(rows, Rows) else rows),
        *facts.findings,
        *(check_tokens(recipe, tokens) if tokens else ()),
        *(check_evaluation_prompts(recipe, facts.evaluated) if facts.evaluated else ()),
        *check_files(recipe, data=isinstance(rows, Rows)),
        *check_bitsandbytes(recipe, gpu),
        *check_backend(recipe, gpu, facts.config.model_type if facts.config else None, _most_images(recipe, rows)),
        *check_model(recipe, facts.config, model, tokens),
        *check_base(recipe, base, facts.config),
        *check_export(recipe),
        *dropped,
        *(check_disk(recipe, disk) if disk else ()),
        *check_gpu_memory(memory, gpu),
        *find_warnings(RunFacts(recipe, model, tokens, gpu)),
    ]
    return Plan(
        run=recipe.run.name,
        stages=stages(recipe),
        findings=findings,
        unknown=facts.unknown,
        data=_data(rows) if isinstance(rows, Rows) else None,
        tokens=tokens,
        work=work,
        model_name=recipe.model.name,
        configuration=None if facts.config is None else facts.config.origin,
        architecture=model,
        trained_parameters=_trained_parameters(model, settings),
        precision=planned_precision(recipe.model, cuda=gpu is not None),
        base=base,
        repository=facts.repository,
        gpu=gpu,
        memory=memory or None,
        time=_times(recipe, facts, settings, work, gpu),
        disk=disk,
        versions=untested_versions(),
    )


def _collect_facts(recipe: Recipe, rows: Rows | ToolkitError, unsloth: bool, query: Query | None) -> _Facts:
    """Return configuration, architecture and tokens, if they are available."""
    facts = _Facts(config=find_configuration(recipe.model))
    if (config := facts.config) is not None:
        facts.repository = find_repository(recipe.model, query) if unsloth else None
        repository = facts.repository
        kept: Sequence[str] = KEPT if unsloth else ()
        if repository is not None and repository.kept is not None:
            kept = repository.kept
        facts.model = facts.attempt("model", lambda: _architecture(config, kept))
        if repository is not None and repository.kept is None and facts.model is not None:
            fraction = fraction_kept(facts.model, repository.size)
            facts.model = keep_fraction(facts.model, fraction)
            facts.unknown[repository.name] = (
                "its config.json, which lists the layers in 16 bits, is not in the Hub's cache. The vision tower and "
                f"{fraction:.0%} of the language model are counted in 16 bits"
                + (", which follows from the size of the repository" if repository.size else "")
            )
    else:
        where = "not in a folder, not in the Hub's cache, and not shipped with this package"
        facts.unknown["model"] = f"config.json of {recipe.model.name} is {where}"
    if isinstance(rows, Rows):
        facts.evaluated = facts.examine(recipe, rows, evaluation_rows(recipe, rows.data))
        trained = training_rows(recipe, rows.data)
        facts.tokens = facts.evaluated if trained is None else facts.examine(recipe, rows, trained)
    else:
        facts.unknown["data"] = "the rows cannot be read: rows, tokens, steps"
        if (model := facts.model) is not None:
            facts.tokens = facts.attempt("tokens", lambda: longest_possible_row(recipe, model))
    return facts


def _architecture(config: Configuration, kept: Sequence[str]) -> Architecture:
    return cached_count(Architecture, [config.fields, list(kept)], lambda: build_architecture(config.fields, kept))


def _most_images(recipe: Recipe, rows: Rows | ToolkitError) -> int:
    """Return the most images of a prompt that vLLM would generate from. 1 if the number does not matter."""
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm" or not isinstance(rows, Rows):
        return 1
    return max((len(sample.images) for sample in rows.data.train), default=1)


def _stage_memory(recipe: Recipe, model: Architecture, setting: Setting, gpu: Gpu | None) -> StageMemory:
    side = recipe.images.max_side
    knobs = {size: first_fit(model, setting, usable_bytes(size), side) for size in GPU_SIZES}
    here = None if gpu is None else first_fit(model, setting, gpu.memory, side)
    usable = None if gpu is None else gpu.memory
    without = estimate(model, on_gpu(setting, model, bf16=False), usable)
    return StageMemory(estimate(model, setting, usable), without, knobs, setting.precision, here)


def _times(
    recipe: Recipe, facts: _Facts, settings: Mapping[Any, Setting], work: Mapping[str, Work] | None, gpu: Gpu | None
) -> dict[str, dict[str, StageTime]] | None:
    """Return GPU -> stage -> duration. Reasons for missing estimates are noted."""
    model, trained, evaluated = facts.model, facts.tokens, facts.evaluated or facts.tokens
    if model is None or trained is None or evaluated is None or work is None:
        facts.unknown["time"] = "it depends on the model's configuration and the rows"
        return None
    gpus = [figures for name in COMMON if (figures := figures_of(name))] if gpu is None else gpu.figures
    if not gpus:
        facts.unknown["time"] = f"data-sheet figures of {'common GPUs' if gpu is None else gpu.name} are unknown"
        return None
    mean = {
        str(name): mean_setting(one, model, evaluated if name == "evaluate" else trained)
        for name, one in settings.items()
    }
    if recipe.grpo is not None and recipe.grpo.rollouts == "vllm":
        facts.unknown["time of grpo"] = "rollouts with vLLM are not estimated"
        mean.pop("grpo", None)
    return stage_times(model, mean, work, gpus)


def _trained_parameters(model: Architecture | None, settings: Mapping[Any, Setting]) -> int | None:
    """Return the number of trained parameters. None: the model is unknown, or nothing is trained."""
    trains = [setting for setting in settings.values() if setting.trains]
    return trained_parameters(model, trains[0]) if model is not None and trains else None


def _data(rows: Rows) -> dict[str, Any]:
    data = rows.data
    return {
        "practice": rows.practice,
        "rows": dict(rows.rows),
        "dropped": [asdict(one) for one in data.dropped],
        "leaks": [str(leak) for leak in data.leaks.leaks],
        "announcements": list(data.announcements),
    }
