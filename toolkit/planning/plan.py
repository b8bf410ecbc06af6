"""The plan of a run: build it, and write it as `toolkit plan --json` prints it and plan.json stores it.

Keys are stable between versions. ``schema_version`` is increased if a key changes its name or meaning. Unknown values
are null, and ``unknown`` has the reasons.

::

    schema_version  3
    run             run.name
    stages          the stages in their order
    ok              whether there are no problems
    problems        code, place, value, rule, remedy, certain (false: by an estimate)
    warnings        code, place, value, rule, remedy
    unknown         fact -> reason that it is unknown
    data            rows by split, dropped, leaks, warnings, synthetic (true: synthetic rows)
    tokens          rows, counted, exact, limit, too_long, and median, p95, max of total, text, images, answer
    work            stage -> steps, samples, completions, answers, answer_tokens, evaluations, validations, validated,
                    extra_rollouts (of a GRPO step, at most)
    model           name, configuration (folder, cache, shipped), type, parameters, vision_parameters,
                    trained_parameters, precision, base (location of the weights), loaded (the repository that
                    Unsloth loads in place of the model. Null: the model itself)
    gpu             name, memory_gb, bf16, count, here. Null: no GPU
    memory          stage -> peak_gb, reserved_gb, precision, moment, peak_gb_without_bf16,
                    moments (moment -> part -> bytes), fits (nominal GB of a GPU -> fits, changes to the recipe)
    packing         completions (in a row of the GRPO update), reasons (why it is 1). Null: no GRPO, or unknown
    time            null, or assumptions, gpus (GPU -> stage -> seconds_per_step, steps, hours: both ends of a range. A
                    step of evaluate is one evaluation. With [validation] also seconds_per_validation and validations),
                    here (the GPU of the plan. Null: none or several)
    architecture    null (the tiny model), or the check on the real architecture: tried (part -> seconds), failed,
                    not_tried (part -> reason), parameters of the reduced model, cached
    disk            parts (bytes), needed_gb, free_gb, downloads (repository -> bytes), downloads_free_gb
    versions        package -> installed and tested version, if they differ

GB are 10^9 bytes, except for nominal sizes of GPUs. ``reserved_gb`` is the peak that torch would report, which does not
include the CUDA context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from toolkit.data.row_counts import RowCount
from toolkit.errors import ToolkitError
from toolkit.planning.architecture import Architecture, build_architecture
from toolkit.planning.architecture_check import ArchitectureCheck
from toolkit.planning.cache import cached_count
from toolkit.planning.checks import check_plan
from toolkit.planning.disk import Disk, Downloads, plan_disk
from toolkit.planning.duration import ASSUMPTIONS, StageTime, mean_setting, stage_times
from toolkit.planning.examined_rows import count_tokens
from toolkit.planning.facts import Facts
from toolkit.planning.findings import PlanFinding, WithFindings
from toolkit.planning.gpu import COMMON, Gpu, figures_of
from toolkit.planning.memory import StageMemory, stage_memory
from toolkit.planning.model_files import (
    UNQUANTIZED_MODULES,
    BaseWeights,
    Configuration,
    Query,
    QueryRepository,
    Repository,
    drop_optional_formats,
    find_base,
    find_configuration,
    find_repository,
    leave_unquantized,
    unquantized_fraction,
)
from toolkit.planning.stages import (
    Packing,
    Setting,
    Stage,
    Work,
    memory_settings,
    plan_packing,
    plan_work,
    planned_backend,
    planned_precision,
    stages,
)
from toolkit.planning.tokens import Rows, Tokens
from toolkit.planning.weights import trained_parameters
from toolkit.recipe import Recipe
from toolkit.runfolder import untested_versions

PLAN_SCHEMA_VERSION = 3
"""Version of plan.json. It is increased if a key changes its name or meaning."""

Unknown = Mapping[str, str]
"""Fact -> the reason why it is unknown."""


@dataclass(frozen=True, slots=True)
class PlannedData:
    """The data of a plan: rows of each split, unusable rows by reason, leaks between splits, and warnings."""

    rows: Mapping[str, int]
    dropped: tuple[RowCount, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...]
    synthetic: bool

    def to_json(self) -> dict[str, object]:
        """Return the entry ``data`` of plan.json."""
        return {
            "rows": dict(self.rows),
            "dropped": [asdict(one) for one in self.dropped],
            "leaks": list(self.leaks),
            "warnings": list(self.warnings),
            "synthetic": self.synthetic,
        }


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """The model of a plan. None: unknown."""

    name: str
    precision: str
    config: Configuration | None = None
    architecture: Architecture | None = None
    trained_parameters: int | None = None
    base: BaseWeights | None = None
    repository: Repository | None = None
    """Repository that Unsloth loads in place of the model."""

    def to_json(self) -> dict[str, object]:
        """Return the entry ``model`` of plan.json."""
        known = self.architecture
        return {
            "name": self.name,
            "configuration": None if self.config is None else self.config.origin,
            "type": None if known is None else known.model_type,
            "parameters": None if known is None else known.parameters,
            "vision_parameters": None if known is None else known.vision_parameters,
            "trained_parameters": self.trained_parameters,
            "precision": self.precision,
            "base": None if self.base is None else self.base.state,
            "loaded": None if self.repository is None else self.repository.name,
        }


@dataclass(frozen=True, slots=True)
class Plan(WithFindings):
    """The plan of a recipe, as the module describes it. None: unknown."""

    run: str
    stages: Sequence[str]
    model: PlannedModel
    findings: Sequence[PlanFinding] = ()
    unknown: Unknown = field(default_factory=dict)
    data: PlannedData | None = None
    tokens: Tokens | None = None
    work: Mapping[Stage, Work] | None = None
    gpu: Gpu | None = None
    memory: Mapping[Stage, StageMemory] | None = None
    time: Mapping[str, Mapping[Stage, StageTime]] | None = None
    """GPU -> stage -> duration, for the plan's GPU, for all GPUs of a described size, or for common GPUs."""
    packing: Packing | None = None
    disk: Disk | None = None
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    architecture_check: ArchitectureCheck | None = None
    """The check on the real architecture, which ``toolkit.pipeline`` makes."""

    def to_json(self) -> dict[str, object]:
        """Return the JSON object that the module describes."""
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "run": self.run,
            "stages": list(self.stages),
            **self.findings_json(),
            "unknown": dict(self.unknown),
            "data": None if self.data is None else self.data.to_json(),
            "tokens": None if self.tokens is None else self.tokens.to_json(),
            "work": None if self.work is None else {stage: asdict(work) for stage, work in self.work.items()},
            "model": self.model.to_json(),
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "memory": None if self.memory is None else {stage: one.to_json() for stage, one in self.memory.items()},
            "packing": None if self.packing is None else self.packing.to_json(),
            "time": None if self.time is None else self._time_json(self.time),
            "architecture": None if self.architecture_check is None else self.architecture_check.to_json(),
            "disk": None if self.disk is None else self.disk.to_json(),
            "versions": {package: dict(versions) for package, versions in self.versions.items()},
        }

    def _time_json(self, time: Mapping[str, Mapping[Stage, StageTime]]) -> dict[str, object]:
        figures = () if self.gpu is None else self.gpu.figures
        return {
            "assumptions": list(ASSUMPTIONS),
            "here": figures[0].name if len(figures) == 1 else None,
            "gpus": {gpu: {stage: one.to_json() for stage, one in found.items()} for gpu, found in time.items()},
        }


def make_plan(
    recipe: Recipe,
    rows: Rows | ToolkitError,
    gpu: Gpu | None,
    query: Query | None = None,
    query_repository: QueryRepository | None = None,
) -> Plan:
    """Return the plan of a recipe.

    Args:
        recipe: A valid recipe.
        rows: The rows of the recipe, or the error that prevents reading them.
        gpu: The GPU to plan for. None: no GPU.
        query: Queries the Hub for the model (default: one request). It is not called with ``HF_HUB_OFFLINE=1``.
        query_repository: Queries the Hub for the repository that Unsloth loads (default: two requests).
    """
    facts, unknown_facts = _collect_facts(recipe, rows, gpu, query, query_repository)
    settings = _memory_settings(facts)
    memory = _stage_memory(facts, settings)
    disk = _disk(facts, settings)
    work = None if facts.row_counts is None else plan_work(facts.recipe, facts.row_counts)
    time, unknown_time = _stage_times(facts, settings, work)
    return Plan(
        run=recipe.run.name,
        stages=stages(facts.recipe),
        model=_planned_model(facts, settings),
        findings=check_plan(facts, memory, disk),
        time=time,
        unknown={**unknown_facts, **unknown_time},
        data=_planned_data(rows) if isinstance(rows, Rows) else None,
        tokens=facts.tokens,
        work=work,
        gpu=gpu,
        memory=memory or None,
        packing=_packing(facts),
        disk=disk,
        versions=untested_versions(),
    )


def _collect_facts(
    recipe: Recipe,
    rows: Rows | ToolkitError,
    gpu: Gpu | None,
    query: Query | None,
    query_repository: QueryRepository | None,
) -> tuple[Facts, Unknown]:
    """Return what is known about model and rows, and why other facts are unknown."""
    config, repository = find_configuration(recipe.model), None
    backend = planned_backend(recipe, here=gpu is not None and gpu.here)
    if config is not None and backend == "unsloth":
        repository = find_repository(recipe.model, query_repository)
    architecture, error, unknown = _find_architecture(recipe, config, repository, unsloth=backend == "unsloth")
    counted = count_tokens(recipe, rows, architecture)
    recipe, export_findings = drop_optional_formats(recipe, config)
    facts = Facts(
        recipe=recipe,
        rows=rows,
        gpu=gpu,
        backend=backend,
        config=config,
        repository=repository,
        architecture=architecture,
        tokens=counted.trained,
        evaluated=counted.evaluated,
        pairs=counted.pairs,
        base=find_base(recipe.model, query),
        model_error=error,
        row_findings=counted.findings,
        export_findings=export_findings,
    )
    return facts, {**unknown, **counted.unknown}


def _find_architecture(
    recipe: Recipe,
    config: Configuration | None,
    repository: Repository | None,
    *,
    unsloth: bool,
) -> tuple[Architecture | None, ToolkitError | None, Unknown]:
    """Return the architecture with the layers that the backend quantizes, its error, and why other facts are unknown.

    The error is None for a model without a configuration.
    """
    if config is None:
        where = "not in a folder, not in the Hub's cache, and not shipped with this package"
        return None, None, {"model": f"config.json of {recipe.model.name} is {where}"}
    listed = None if repository is None else repository.unquantized
    modules = list(listed if listed is not None else UNQUANTIZED_MODULES if unsloth else ())

    def build() -> Architecture:
        return build_architecture(config.fields, modules)

    try:
        model = cached_count(Architecture, [config.fields, modules], build)
    except ToolkitError as error:
        return None, error, {"model": str(error)}
    if repository is None or listed is not None:
        return model, None, {}
    fraction = unquantized_fraction(model, repository.size)
    reason = (
        "its config.json, which lists the layers in 16 bits, is not in the Hub's cache. The vision tower and "
        f"{fraction:.0%} of the language model are counted in 16 bits"
        + (", which follows from the size of the repository" if repository.size else "")
    )
    return leave_unquantized(model, fraction), None, {repository.name: reason}


def _memory_settings(facts: Facts) -> Mapping[Stage, Setting]:
    if facts.architecture is None:
        return {}
    return memory_settings(
        facts.recipe,
        facts.architecture,
        facts.tokens,
        bf16=facts.gpu is None or facts.gpu.bf16,
        evaluated=facts.evaluated,
        pairs=facts.pairs,
        backend=facts.backend,
    )


def _packing(facts: Facts) -> Packing | None:
    if facts.recipe.grpo is None or facts.architecture is None:
        return None
    return plan_packing(facts.recipe, facts.backend, facts.architecture.model_type)


def _stage_memory(facts: Facts, settings: Mapping[Stage, Setting]) -> dict[Stage, StageMemory]:
    model, side = facts.architecture, facts.recipe.images.max_side
    if model is None or facts.tokens is None:
        return {}
    return {stage: stage_memory(model, setting, facts.gpu, side) for stage, setting in settings.items()}


def _disk(facts: Facts, settings: Mapping[Stage, Setting]) -> Disk | None:
    if facts.architecture is None:
        return None
    return plan_disk(facts.recipe, facts.architecture, settings, Downloads(facts.base.state, facts.repository))


def _planned_data(rows: Rows) -> PlannedData:
    data = rows.data
    leaks = tuple(str(leak) for leak in data.leaks.leaks)
    return PlannedData(rows.counts, tuple(data.dropped), leaks, tuple(data.warning_texts), rows.synthetic)


def _planned_model(facts: Facts, settings: Mapping[Stage, Setting]) -> PlannedModel:
    model, trains = facts.architecture, [setting for setting in settings.values() if setting.trains]
    return PlannedModel(
        name=facts.recipe.model.name,
        precision=planned_precision(facts.recipe.model, cuda=facts.gpu is not None),
        config=facts.config,
        architecture=model,
        trained_parameters=trained_parameters(model, trains[0]) if model is not None and trains else None,
        base=facts.base,
        repository=facts.repository,
    )


def _stage_times(
    facts: Facts, settings: Mapping[Stage, Setting], work: Mapping[Stage, Work] | None
) -> tuple[Mapping[str, Mapping[Stage, StageTime]] | None, Unknown]:
    """Return GPU -> stage -> duration, and why other durations are unknown."""
    model, trained, evaluated = facts.architecture, facts.tokens, facts.evaluated or facts.tokens
    if model is None or trained is None or evaluated is None or work is None:
        return None, {"time": "it depends on the model's configuration and the rows"}
    gpu = facts.gpu
    gpus = [figures for name in COMMON if (figures := figures_of(name))] if gpu is None else gpu.figures
    if not gpus:
        return None, {"time": f"data-sheet figures of {'common GPUs' if gpu is None else gpu.name} are unknown"}
    of_stage = {"evaluate": evaluated, "dpo": facts.pairs or trained}
    mean = {stage: mean_setting(setting, model, of_stage.get(stage, trained)) for stage, setting in settings.items()}
    unknown = {}
    if facts.recipe.grpo is not None and facts.recipe.grpo.rollouts == "vllm":
        unknown["time of grpo"] = "rollouts with vLLM are not estimated"
        mean.pop("grpo", None)
    return stage_times(model, mean, work, gpus), unknown
