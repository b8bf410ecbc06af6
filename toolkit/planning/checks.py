"""Checks of a plan: problems that prevent the run, and warnings. Numbers of issues are those of GitHub."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from toolkit.data.loading import check_validation_split
from toolkit.errors import (
    DataError,
    MissingExtraError,
    ModelError,
    Problem,
    ToolkitError,
    TrainingError,
    list_places,
)
from toolkit.evaluation.custom_metrics import load_metric
from toolkit.models import backend_name
from toolkit.models.adapter_config import CONFIG, check_adapter
from toolkit.models.families import IMAGE_BLOCKS, VLLM, family_of
from toolkit.models.lengths import check_reasoning
from toolkit.models.llamacpp import formats_of, require_for
from toolkit.models.model_paths import writes_merged
from toolkit.models.packing import not_packed_reasons
from toolkit.models.processor import open_processor
from toolkit.models.prompts import Prompts
from toolkit.models.unsloth.preload import unsupported_reasons
from toolkit.models.vllm import Machine, vllm_unsupported_reasons
from toolkit.models.weight_files import check_model_folder
from toolkit.planning.architecture import Architecture, Linear, build_linears
from toolkit.planning.disk import Disk, check_disk
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.planning.gpu import GIB, Gpu
from toolkit.planning.memory import UNPACKED, StageMemory
from toolkit.planning.model_files import BaseWeights, Configuration, Repository, check_base
from toolkit.planning.stages import Backend, Stage, planned_precision
from toolkit.planning.tokens import COUNTED, TEMPLATE_FAULTS, Rows, Tokens, find_processor, opened_block
from toolkit.recipe import Model, Recipe, missing_requirements
from toolkit.recipe.model_kind import is_folder_name
from toolkit.recipe.sections import ALL_LINEAR
from toolkit.runfolder import find_weights
from toolkit.tasks import TASKS
from toolkit.training.rewards import load_custom

MAX_SHOWN = 5
"""Rows that a problem names."""


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


def check_plan(facts: Facts, memory: Mapping[Stage, StageMemory], disk: Disk | None) -> list[PlanFinding]:
    """Return all problems and warnings of a planned run."""
    return [
        *(finding for check in _PROBLEMS for finding in check(facts)),
        *check_base(facts.recipe, facts.base, facts.config),
        *_check_export(facts),
        *facts.export_findings,
        *(check_disk(facts.recipe, disk) if disk else ()),
        *_check_gpu_memory(memory, facts.gpu),
        *(finding for check in _WARNINGS for finding in check(facts)),
    ]


def _check_rows(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if the rows cannot be read or are too few for an optimizer step."""
    grpo = facts.recipe.grpo
    if isinstance(facts.rows, ToolkitError):
        yield from_error(facts.rows, "[data]")
    elif grpo is not None and (train := facts.rows.counts["train"]) < grpo.prompts_per_step:
        rule, value = f"must be at most the number of training rows ({train})", grpo.prompts_per_step
        remedy = "Lower it, or add training rows."
        yield PlanFinding(Problem("training.too_few_prompts", rule, "[grpo] prompts_per_step", value, remedy))


def _check_validation_rows(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if the validation split cannot be used."""
    if facts.recipe.validation is None or not isinstance(facts.rows, Rows) or facts.rows.synthetic:
        return
    try:
        check_validation_split(facts.rows.data)
    except DataError as error:
        yield from_error(error, "[validation]")


def _check_counted_rows(facts: Facts) -> Iterator[PlanFinding]:
    yield from facts.row_findings


def _check_custom_code(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for custom metrics and rewards that cannot be loaded. ``_check_files`` reports missing files."""
    recipe = facts.recipe
    for entry in recipe.evaluation.metrics:
        yield from _check_loading("[evaluate] metrics", entry, load_metric)
    for entry in recipe.rewards.custom if recipe.grpo is not None else ():
        yield from _check_loading("[rewards] custom", entry, partial(load_custom, base=Path()))


def _check_loading(place: str, entry: str, load: Callable[[str], object]) -> Iterator[PlanFinding]:
    if not Path(entry.rpartition(":")[0]).is_file():
        return
    try:
        load(entry)
    except ToolkitError as error:
        yield from_error(error, place)


def _check_files(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for missing files and packages that the recipe names.

    If the rows cannot be read, ``_check_rows`` reports their files. ``check_base`` reports the model folder.
    """
    for problem in missing_requirements(facts.recipe):
        section, _, name = problem.place.partition(".")
        if problem.place != "model.name" and (isinstance(facts.rows, Rows) or section != "data"):
            yield PlanFinding(replace(problem, place=f"[{section}] {name}"))


def _check_tokens(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for rows that exceed model.max_tokens: with their answer in SFT, with the completion in GRPO.

    In DPO, with the longer one of their two answers.
    """
    recipe, tokens = facts.recipe, facts.tokens
    if tokens is None or not tokens.rows:
        return
    place, remedy = "[model] max_tokens", "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
    checked = f"of {len(tokens.lengths)} rows checked"
    for with_answer in [*([tokens] if recipe.sft else ()), *([facts.pairs] if facts.pairs else ())]:
        over = sum(length.total > tokens.limit for length in with_answer.lengths)
        if over:
            named = f" ({list_places(with_answer.too_long[:MAX_SHOWN])})" if with_answer.too_long else ""
            rule = f"must hold every row, and {over} {checked} are longer{named}"
            yield PlanFinding(Problem("data.row_too_long", rule, place, tokens.limit, remedy), certain=tokens.exact)
    if recipe.grpo is not None:
        available = tokens.limit - recipe.grpo.max_completion_tokens
        over = sum(length.text + length.images > available for length in tokens.lengths)
        if over:
            rule = f"must hold the prompt and grpo.max_completion_tokens, and {over} {checked} have longer prompts"
            problem = Problem("plan.training_prompt_too_long", rule, place, tokens.limit, remedy)
            yield PlanFinding(problem, certain=tokens.exact)
    if not tokens.exact:
        rule = "text tokens are estimated from characters, because the model's processor is not available"
        yield warning(Problem("plan.tokens_estimated", rule, "tokens", remedy="Download the model to count them."))


def _check_evaluation_prompts(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for evaluation prompts that leave too few tokens for a completion."""
    recipe, evaluated = facts.recipe, facts.evaluated
    if evaluated is None:
        return
    available = evaluated.limit - recipe.evaluation.max_completion_tokens
    if over := sum(length.text + length.images > available for length in evaluated.lengths):
        rule = "must hold the prompt and evaluate.max_completion_tokens, and "
        rule += f"{over} of {len(evaluated.lengths)} rows checked have longer prompts"
        remedy = "Raise model.max_tokens, lower images.max_side, or shorten the prompt."
        certain = evaluated.exact and recipe.evaluation.max_tasks is None
        problem = Problem("plan.evaluation_prompt_too_long", rule, "[model] max_tokens", evaluated.limit, remedy)
        yield PlanFinding(problem, certain=certain)


def _check_reasoning(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if SFT has answers without the reasoning that prompt.thinking requests."""
    recipe = facts.recipe
    if not recipe.prompt.thinking or recipe.sft is None or not isinstance(facts.rows, Rows):
        return
    train = facts.rows.data.train
    try:
        tag = opened_block(recipe)
        check_reasoning(tag, Prompts.of(recipe, facts.rows.images), train[:: max(1, -(-len(train) // COUNTED))])
    except ModelError as error:
        if error.code not in TEMPLATE_FAULTS:  # the count of tokens reports these
            yield from_error(error, "prompt.thinking")
    except ToolkitError as error:
        yield from_error(error, "prompt.thinking")


def _check_family(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for a family whose training is known to stop."""
    recipe, model_type = facts.recipe, "" if facts.config is None else facts.config.model_type
    reason = family_of(model_type).untrainable
    if reason and recipe.training:
        rule = f"models of the family {model_type} cannot be trained: {reason}"
        remedy = "Choose another model."
        yield PlanFinding(Problem("model.family_not_trainable", rule, "[model] name", recipe.model.name, remedy))


def _check_quantization(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for a family whose authors or trainers advise against 4-bit base weights."""
    recipe, config = facts.recipe, facts.config
    reason = "" if config is None else family_of(config.model_type).not_4bit
    if reason and planned_precision(recipe.model, cuda=facts.gpu is not None) == "4bit":
        remedy = 'Set precision = "16bit", with a smaller model if it does not fit.'
        yield warning(Problem("plan.4bit_discouraged", reason, "[model] precision", recipe.model.precision, remedy))


def _check_bitsandbytes(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for settings that need bitsandbytes, which is slow on a CPU and may not be installed."""
    recipe = facts.recipe
    if facts.gpu is not None:
        return
    wanted: dict[str, str] = {}
    if recipe.model.precision in ("4bit", "8bit"):
        wanted["[model] precision"] = recipe.model.precision
    for name, section in recipe.training.items():
        if section.optimizer.endswith("8bit"):
            wanted[f"[{name}] optimizer"] = section.optimizer
    installed = find_spec("bitsandbytes") is not None
    for place, value in wanted.items():
        if not installed:
            rule, remedy = "needs bitsandbytes, which is not installed", "Install it: pip install bitsandbytes."
            yield PlanFinding(Problem("model.library_missing", rule, place, value, remedy))
        elif value.startswith("paged_"):
            rule = f'needs a CUDA device, so "{value.removeprefix("paged_")}" is used, which makes the same updates'
            remedy = "Use a machine with a GPU, or the other optimizer."
            yield warning(Problem("training.optimizer_not_paged", rule, place, value, remedy))
        elif place == "[model] precision":
            rule = "quantized weights are slow on a CPU, and no CUDA device is available"
            remedy = "Use a machine with a GPU. `toolkit plan RECIPE --gpu 16` plans for one."
            yield warning(Problem("model.quantized_on_cpu", rule, place, value, remedy))


def _check_export(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if a package for GGUF files is missing, or the converter does not support the model's family."""
    section = facts.recipe.export
    model_type = "" if facts.config is None else facts.config.model_type
    if section is not None and "gguf" in formats_of(section) and family_of(model_type).gguf is False:
        rule = f"a GGUF file of the family {model_type} cannot be exported, because llama.cpp's converter rejects it"
        place, remedy = f"[export] {'to' if 'gguf' in section.to else 'optional'}", 'Remove "gguf".'
        yield PlanFinding(Problem("export.gguf_family_unsupported", rule, place, "gguf", remedy))
    if section is None or "gguf" not in section.to:
        return
    try:
        require_for(section.quant, verify=section.verify > 0)
    except MissingExtraError as error:
        yield PlanFinding(replace(error.problem, place="[export] to"))


def _check_packing(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if the recipe requests packed prompts, which its model or settings do not allow."""
    if facts.recipe.grpo is None or facts.config is None:
        return
    try:
        not_packed_reasons(facts.recipe, facts.backend, facts.config.model_type)
    except ModelError as error:
        yield from_error(error, "[grpo] packing")


def _check_gpu_memory(memory: Mapping[Stage, StageMemory], gpu: Gpu | None) -> Iterator[PlanFinding]:
    """Yield a finding for each stage whose estimate exceeds the GPU memory, with settings that make it fit."""
    for name, stage in memory.items():
        peak = stage.estimate.peak
        if gpu is None or peak.total <= gpu.memory:
            continue
        rule = f"the estimated peak in GiB ({peak.name}) must fit the {gpu.memory / GIB:.1f} GiB of {gpu.name}"
        place, value, remedy = f"memory of {name}", round(peak.total / GIB, 1), _describe_changes(stage.changes_here)
        if stage.changes_here == (UNPACKED,):
            remedy = "Change nothing: after an out-of-memory error, fewer completions are in a row."
            yield warning(Problem("plan.packed_row_too_long", rule, place, value, remedy))
            continue
        yield PlanFinding(Problem("plan.gpu_memory_too_small", rule, place, value, remedy), certain=False)


def _describe_changes(changes: tuple[str, ...] | None) -> str:
    """Return the changes that make a stage fit, as a sentence."""
    if changes is None:
        return "Use a smaller model or a larger GPU: no known setting makes the stage fit."
    return f"Set {', '.join(changes)} to make it fit."


def _check_backend(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings for settings that Unsloth would reject after the run has started."""
    recipe = facts.recipe
    if recipe.model.backend != "unsloth":
        return
    if facts.gpu is None or facts.gpu.here:
        try:
            backend_name(recipe.model)
        except ModelError as error:
            yield from_error(error, "[model] backend")
    for reason in unsupported_reasons(recipe):
        rule = f"Unsloth cannot train this recipe: {reason}"
        remedy = 'Change the recipe, or set backend = "hf".'
        yield PlanFinding(Problem("model.unsloth_cannot_train", rule, "[model] backend", remedy=remedy))


def _check_vllm(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding for settings that vLLM would reject after the run has started."""
    recipe, gpu = facts.recipe, facts.gpu
    if recipe.grpo is None or recipe.grpo.rollouts != "vllm":
        return
    model_type = facts.config.model_type if facts.config else ""
    images = 1  # unknown
    if isinstance(facts.rows, Rows):
        images = max((len(sample.images) for sample in facts.rows.data.train), default=1)
    reasons = vllm_unsupported_reasons(recipe, _machine(gpu), model_type or min(VLLM), images)
    here = gpu is None or gpu.here
    if here and recipe.model.backend == "auto" and backend_name(recipe.model) != "unsloth":
        reasons.append("it goes through Unsloth, and the backend here is hf")
    if reasons:
        rule = f"vLLM cannot generate the completions: {'; '.join(reasons)}"
        remedy = 'Set rollouts = "transformers".'
        yield PlanFinding(Problem("training.vllm_unsupported", rule, "[grpo] rollouts", remedy=remedy))


def _check_grpo_family(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a finding if TRL cannot train the model's family, or drops image fields that it needs."""
    if facts.recipe.grpo is None or facts.config is None:
        return
    from toolkit.models.pixel_layout import check_grpo_supports  # imports torch

    try:
        processor = find_processor(facts.recipe)
        if processor is not None:
            check_grpo_supports(processor, facts.config.model_type)
    except TrainingError as error:
        yield from_error(error, "[grpo]")
    except ModelError:  # another check reports the chat template
        return


def _machine(gpu: Gpu | None) -> Machine:
    """Return the GPU as vLLM would find it.

    A described GPU counts as an Ampere GPU, or as a Turing GPU if it lacks bfloat16.
    """
    if gpu is not None and gpu.here:
        return Machine.here()
    installed = find_spec("vllm") is not None
    if gpu is None:
        return Machine(0.0, (0, 0), installed)
    return Machine(gpu.memory / 1e9, (8, 0) if gpu.bf16 else (7, 5), installed)


def _check_model(facts: Facts) -> Iterator[PlanFinding]:
    """Yield findings if a model folder is incomplete, or the model lacks layers or attention of the recipe."""
    recipe, config, model, tokens = facts.recipe, facts.config, facts.architecture, facts.tokens
    place = "[model] name"
    folder = Path(recipe.model.name) if is_folder_name(recipe.model.name) else None
    if folder is not None and folder.is_dir():
        if config is None:
            rule = "the model folder must contain config.json"
            yield PlanFinding(Problem("plan.config_missing", rule, place, str(folder), "Name a complete model folder."))
        elif tokens is not None and tokens.rows and not tokens.exact:
            yield from _check_processor(recipe.model)
    if config is not None and model is None and not _can_be_built(config, recipe.model):
        rule = "the model_type must be one that the installed transformers loads for images and text"
        remedy = "Name another model, or install a version of transformers that supports it."
        yield PlanFinding(Problem("plan.model_type_unsupported", rule, place, config.model_type, remedy))
    elif facts.model_error is not None and _is_certain(facts.model_error, recipe.model):
        yield from_error(facts.model_error, place)
    elif config is not None:
        if _trains_named_layers(recipe) and not recipe.model.trust_remote_code:
            yield from _check_lora_targets(recipe, build_linears(config.fields) if model is None else model.linears)
        yield from _check_attention(recipe.model, config.model_type)


def _is_certain(error: ToolkitError, model: Model) -> bool:
    """Return whether a run would end with the error of a model's configuration. Code of its authors may load it."""
    return error.code == "model.library_missing" or (
        error.code != "plan.shapes_unknown" and not model.trust_remote_code
    )


def _check_processor(model: Model) -> Iterator[PlanFinding]:
    """Yield why the processor in a model folder does not load."""
    try:
        open_processor(model, local=True)
    except ModelError as error:
        if error.code != "model.processor_unusable":
            yield from_error(error, "[model] name")
            return
        rule = (
            f"the model folder must contain a processor that loads, with tokenizer and image processor: {error.value}"
        )
        remedy = "Copy the files of the model's processor into the folder."
        yield PlanFinding(Problem("plan.processor_missing", rule, "[model] name", model.name, remedy))


def _check_weights(facts: Facts) -> Iterator[PlanFinding]:
    yield from check_start(facts.recipe.model)


def check_start(model: Model) -> Iterator[PlanFinding]:
    """Yield a finding if ``model.adapter`` has no valid weights. ``check_base`` reports those of ``model.name``."""
    if model.adapter is None or not model.adapter.exists():
        return
    try:
        weights = find_weights(model.adapter)
        if (weights / CONFIG).is_file():
            check_adapter(weights)
        else:
            check_model_folder(weights)
    except ToolkitError as error:
        yield from_error(error, "[model] adapter")


def _can_be_built(config: Configuration, model: Model) -> bool:
    """Return whether transformers supports the model. Custom code of the model's authors may support more."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if model.trust_remote_code:
        return True
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return False
    try:
        CONFIG_MAPPING[config.model_type].from_dict(dict(config.fields))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StrictDataclassError):
        return False
    return True


def _trains_named_layers(recipe: Recipe) -> bool:
    has_new_adapter = recipe.model.tuning == "lora" and recipe.model.adapter is None
    return has_new_adapter and bool(recipe.training) and recipe.lora.targets != ALL_LINEAR


def _check_lora_targets(recipe: Recipe, linears: Sequence[Linear]) -> Iterator[PlanFinding]:
    """Check the targets of a new adapter, as ``toolkit.models.lora`` does."""
    available = {linear.name for linear in linears if not (linear.vision or linear.audio)}
    if missing := sorted(set(recipe.lora.targets) - available):
        rule, remedy = "must name linear layers of the language model", f"Choose from: {', '.join(sorted(available))}."
        yield PlanFinding(Problem("model.lora_target_unknown", rule, "[lora] targets", missing, remedy))


def _check_attention(model: Model, model_type: str) -> Iterator[PlanFinding]:
    """Check the attention implementation, as ``toolkit.models.loading`` does."""
    if model.attention == "flash_attention_2" and model_type in IMAGE_BLOCKS:
        rule = "must support the bidirectional attention between the model's image tokens"
        remedy = 'Set attention = "sdpa" or "eager".'
        yield PlanFinding(
            Problem("model.attention_ignores_image_blocks", rule, "[model] attention", model.attention, remedy)
        )


def _no_bfloat16(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for a GPU on which Gemma 3 overflows in float16 (unsloth#2040, #2818)."""
    if facts.gpu is None or facts.gpu.bf16 or facts.recipe.model.precision == "32bit":
        return
    rule = "the GPU does not support bfloat16, so unquantized weights are float32, which is slower and doubles their "
    rule += "memory (included in the estimate). MedGemma and Gemma 3 overflow in float16"
    remedy = "Use a smaller model, or a GPU of the Ampere generation or later."
    yield warning(Problem("plan.no_bfloat16", rule, facts.gpu.name, remedy=remedy))


def _several_gpus(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if some GPUs are not used (unsloth#431, #2467)."""
    if facts.gpu is not None and facts.gpu.count > 1:
        rule = "the run uses only one of the available GPUs"
        remedy = "Run `accelerate launch --num_processes 2 -m toolkit run RECIPE` to use two."
        yield warning(Problem("model.one_gpu_used", rule, "GPU", facts.gpu.count, remedy))


def _vision_adapter(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning for adapters that vLLM does not serve (vllm#21500, #41754)."""
    recipe = facts.recipe
    exports_adapter_alone = recipe.export is not None and not writes_merged(recipe)
    if recipe.lora.vision and recipe.model.tuning == "lora" and recipe.model.name != "tiny" and exports_adapter_alone:
        rule = "vLLM does not load an adapter with vision-tower layers, or silently ignores them"
        remedy = 'Add "merged" to export.to to serve the model with vLLM.'
        yield warning(Problem("plan.vision_adapter_not_servable", rule, "[lora] vision", remedy=remedy))


def _dora(facts: Facts) -> Iterator[PlanFinding]:
    """Yield warnings for DoRA: what the estimates leave out, and programs that do not load such adapters."""
    recipe = facts.recipe
    if not recipe.lora.dora or recipe.model.tuning != "lora" or not recipe.training:
        return
    rule = "DoRA builds the full update of each adapted matrix in every pass. The estimates of time and GPU memory "
    rule += "leave this out"
    if facts.architecture is not None:  # the identity, the update, the base and their sum, in float32 (peft's dora.py)
        targets = facts.architecture.target_names(recipe.lora.targets)
        adapted = facts.architecture.adapted(targets, recipe.lora.vision)
        largest = max((one.inputs * one.outputs for one in adapted), default=0)
        rule += f", up to {4 * 4 * largest / GIB:.1f} GiB at a time"
    remedy = "Leave a margin of GPU memory, or set lora.dora = false."
    yield warning(Problem("plan.dora_not_estimated", rule, "[lora] dora", remedy=remedy))
    if recipe.export is not None and not writes_merged(recipe):
        rule, remedy = "vLLM does not load DoRA adapters", 'Add "merged" to export.to to serve the model with vLLM.'
        yield warning(Problem("plan.dora_not_servable", rule, "[lora] dora", remedy=remedy))


def _kl_reference(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    trained_before = recipe.sft or recipe.dpo or recipe.model.adapter is not None
    if recipe.grpo is not None and recipe.grpo.beta > 0 and trained_before:
        rule = "the KL term uses the adapter that GRPO starts from as its reference, not the base model. "
        rule += "A second copy of the adapter is kept, and every optimizer step needs one more forward pass"
        yield warning(
            Problem(
                "plan.kl_reference_is_adapter", rule, "[grpo] beta", remedy="Set grpo.beta = 0 to train without it."
            )
        )


def _preference_estimates(facts: Facts) -> Iterator[PlanFinding]:
    if facts.recipe.dpo is not None and facts.gpu is not None:
        rule = "GPU memory and time of DPO are estimated by formulas that were not checked with a trace or a GPU. "
        rule += "Logits are counted for every position of both answers, and the reference adds a forward pass"
        remedy = "Leave some GPU memory free. OOM recovery continues with fewer pairs per pass."
        yield warning(Problem("plan.dpo_estimate_unchecked", rule, "[dpo]", remedy=remedy))


def _zero_variance_rewards(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if groups with equal rewards, which have no gradient, are probable (trl#3857, #3452)."""
    recipe = facts.recipe
    if recipe.grpo is None:
        return
    counted = {name for name, weight in recipe.reward_weights.items() if weight > 0}
    if counted and counted <= TASKS[recipe.dataset.task].all_or_nothing:
        rule = "every weighted reward is all or nothing, and zero-variance groups have no gradient"
        remedy = "Add weight to a reward with partial credit. The probe before step 1 reports these groups."
        yield warning(Problem("plan.rewards_all_or_nothing", rule, "[rewards]", sorted(counted), remedy))


def _truncated_completions(facts: Facts) -> Iterator[PlanFinding]:
    """Yield warnings for truncated completions, which get no reward (trl#5697, ms-swift#4950)."""
    if facts.tokens is None:
        return
    usual = facts.tokens.percentiles("answer")["p95"]
    for name, section in (("grpo", facts.recipe.grpo), ("evaluate", facts.recipe.evaluate)):
        if section is not None and section.max_completion_tokens < usual:
            over = sum(length.answer > section.max_completion_tokens for length in facts.tokens.lengths)
            rule = f"should be at least {usual}, the 95th percentile of the tokens of the reference answers. "
            rule += f"{over} of {len(facts.tokens.lengths)} rows checked have longer ones"
            place, value = f"[{name}] max_completion_tokens", section.max_completion_tokens
            remedy = "Raise it. Longer answers are truncated and count as wrong."
            yield warning(Problem("plan.answers_cut_off", rule, place, value, remedy))


def _no_gradient_checkpointing(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    for name, section in recipe.training.items():
        on_gpu = facts.gpu is not None and recipe.model.name != "tiny"
        if not section.gradient_checkpointing and on_gpu:
            rule, place = "every layer keeps its activations", f"[{name}] gradient_checkpointing"
            remedy = "Set it to true to free most of their memory for about a third more time."
            yield warning(Problem("plan.no_gradient_checkpointing", rule, place, False, remedy))


def _evaluated_split_validates(facts: Facts) -> Iterator[PlanFinding]:
    """Yield a warning if the results would be those of the rows that the weights were chosen on."""
    recipe = facts.recipe
    if recipe.validation and recipe.evaluate and recipe.evaluate.split == "validation":
        rule = "the validation split also chooses the weights, so its scores are too good"
        remedy = 'Set evaluate.split = "test".'
        yield warning(Problem("plan.validation_split_evaluated", rule, "[evaluate] split", "validation", remedy))


def _long_warmup(facts: Facts) -> Iterator[PlanFinding]:
    recipe = facts.recipe
    for name, section in recipe.training.items():
        if section.max_steps is not None and section.warmup_steps > section.max_steps:
            rule = (
                f"the warmup is longer than {name}.max_steps (={section.max_steps}), so the learning rate has no peak"
            )
            remedy = "Lower it, or raise max_steps."
            yield warning(Problem("plan.warmup_too_long", rule, f"[{name}] warmup_steps", section.warmup_steps, remedy))


def _rounded_updates(facts: Facts) -> Iterator[PlanFinding]:
    model = facts.recipe.model
    if model.tuning == "full" and model.precision == "16bit":
        rule = "full fine-tuning in 16 bits loses updates that are smaller than the rounding of the weights"
        remedy = 'Set precision = "32bit", or tuning = "lora".'
        yield warning(Problem("plan.small_updates_lost", rule, "[model] precision", model.precision, remedy))


def _remote_code(facts: Facts) -> Iterator[PlanFinding]:
    if facts.recipe.model.trust_remote_code:
        rule = "Python code of the model's authors runs with your permissions"
        yield warning(Problem("plan.remote_code", rule, "[model] trust_remote_code", remedy="Read the code first."))


_PROBLEMS: tuple[Check, ...] = (
    _check_rows,
    _check_validation_rows,
    _check_counted_rows,
    _check_tokens,
    _check_evaluation_prompts,
    _check_reasoning,
    _check_files,
    _check_custom_code,
    _check_bitsandbytes,
    _check_backend,
    _check_vllm,
    _check_packing,
    _check_grpo_family,
    _check_model,
    _check_family,
    _check_weights,
)
_WARNINGS: tuple[Check, ...] = (
    _check_quantization,
    _no_bfloat16,
    _several_gpus,
    _vision_adapter,
    _dora,
    _kl_reference,
    _preference_estimates,
    _zero_variance_rewards,
    _truncated_completions,
    _no_gradient_checkpointing,
    _evaluated_split_validates,
    _long_warmup,
    _rounded_updates,
    _remote_code,
)
