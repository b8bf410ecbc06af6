"""Rules that involve several keys or sections, and the files and packages that a recipe needs."""

import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from toolkit.errors import Problem, RecipeError, install_command
from toolkit.recipe.base import RecipeSynthetic
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.problems import nearest
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sections import MAX_NUMBER, Evaluate, SyntheticData
from toolkit.recipe.user_code import USER_CODE
from toolkit.recipe.windows import NAMES, hounsfield_windows

Check = Callable[[Recipe], Iterator[Problem]]
"""Yields problems. Their place is a dotted key of the recipe."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def is_folder_name(model: str) -> bool:
    """Return whether ``model.name`` is a folder (starts with ``./``, ``../``, ``~`` or ``/``), not a Hub name."""
    return model in (".", "..") or model.startswith(("./", "../", "~")) or Path(model).is_absolute()


def for_language_models(recipe: Recipe, command: str) -> Recipe:
    """Return the recipe of a vision-language model.

    Args:
        recipe: the recipe of a command that does not support image generators.
        command: the command, as the user types it.

    Raises:
        RecipeError: the recipe has [imagegen].
    """
    if recipe.imagegen is not None:
        rule = f"{command} needs the recipe of a vision-language model, and this one has [imagegen]"
        remedy = "Use `toolkit run` or `toolkit imagegen`, which work on image generators."
        raise RecipeError([Problem("recipe.not_vision_language", rule, recipe.run.name, remedy=remedy)])
    return recipe


def for_image_generators(recipe: Recipe, command: str) -> Imagegen:
    """Return the section [imagegen] of a recipe.

    Args:
        recipe: the recipe of a command for image generators only.
        command: the command, as the user types it.

    Raises:
        RecipeError: the recipe is for a vision-language model.
    """
    if recipe.imagegen is None:
        rule = f"{command} needs the recipe of an image generator, and this one has no section [imagegen]"
        remedy = "Choose the run of a recipe with [imagegen]."
        raise RecipeError([Problem("recipe.not_image_generator", rule, recipe.run.name, remedy=remedy)])
    return recipe.imagegen


def has_a_stage(recipe: Recipe) -> Iterator[Problem]:
    """Check that the recipe has at least one stage."""
    if not (recipe.training or recipe.evaluate or recipe.export):
        rule = "must have at least one of [sft], [dpo], [grpo], [evaluate] and [export]"
        yield Problem("recipe.nothing_to_do", rule, remedy="Add one of these sections.")


def has_one_source_of_rows(recipe: Recipe) -> Iterator[Problem]:
    """Check that the rows come either from files or from [data.synthetic]."""
    data = recipe.dataset
    if data.synthetic is None and data.train is None:
        remedy = "Set data.train to a file, or add [data.synthetic] for synthetic data."
        yield Problem("recipe.no_rows", "must have a source of rows", "data", remedy=remedy)
    for name in ("train", "validation", "test", "image_root"):
        value = getattr(data, name)
        if data.synthetic is not None and value is not None:
            rule = "must not be set together with [data.synthetic], which generates rows"
            yield Problem("recipe.two_sources_of_rows", rule, f"data.{name}", str(value), "Remove one of them.")
        if value is not None and not str(value):
            remedy = "Set a path, or remove the key."
            yield Problem("recipe.path_empty", "must not be empty", f"data.{name}", "", remedy)
    if data.synthetic is not None:
        yield from _synthetic_data_fits(data.synthetic, recipe)


def _synthetic_data_fits(synthetic: SyntheticData, recipe: Recipe) -> Iterator[Problem]:
    task = recipe.dataset.task
    wanted, rows = _task_of_kind(synthetic.kind, recipe)
    if synthetic.size < rows.min_size:
        rule = f"must be at least {rows.min_size} for {rows.content}"
        yield Problem("recipe.synthetic_size_too_small", rule, "data.synthetic.size", synthetic.size, "Raise it.")
    if task != wanted:
        rule = f'must be "{wanted}" with [data.synthetic] kind = "{synthetic.kind}"'
        yield Problem("recipe.synthetic_task_mismatch", rule, "data.task", task, "Change one of them.")


def _task_of_kind(kind: str, recipe: Recipe) -> tuple[str, RecipeSynthetic]:
    """Return the name of the task with synthetic data of this kind, and the data. The recipe's own task comes first."""
    known = {recipe.dataset.task: recipe.task, **recipe.tasks}
    return next((name, one.synthetic) for name, one in known.items() if one.synthetic and one.synthetic.kind == kind)


def loss_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check the settings of CISPO, which caps a ratio that is 1 on policy, and of GSPO, which uses the GRPO loss."""
    grpo = recipe.grpo
    if grpo is None:
        return
    if grpo.loss == "cispo" and (grpo.epsilon_high is None or grpo.epsilon_high < 1):
        rule = 'must be at least 1 with loss = "cispo", which caps the ratio at epsilon_high'
        remedy = "Set it to 5, as in arXiv 2506.13585."
        yield Problem("recipe.cispo_cap_too_low", rule, "grpo.epsilon_high", grpo.epsilon_high, remedy)
    if grpo.importance == "sequence" and grpo.loss != "grpo":
        rule, remedy = 'must be "grpo" with importance = "sequence" (GSPO)', 'Set loss = "grpo".'
        yield Problem("recipe.gspo_loss_mismatch", rule, "grpo.loss", grpo.loss, remedy)


def resampling_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check that groups of several rollouts can form one step: their advantages must not depend on other groups."""
    grpo = recipe.grpo
    if grpo is None or not grpo.resample:
        return
    if grpo.scale_rewards == "batch":
        rule = 'must not be "batch" with grpo.resample, because each rollout would have a deviation of its own'
        yield Problem("recipe.resample_scale", rule, "grpo.scale_rewards", "batch", 'Set scale_rewards = "group".')
    if grpo.rollouts == "vllm":
        rule, remedy = 'must be 0 with rollouts = "vllm"', 'Set rollouts = "transformers", or resample = 0.'
        yield Problem("recipe.resample_vllm", rule, "grpo.resample", grpo.resample, remedy)


def task_settings_fit(recipe: Recipe) -> Iterator[Problem]:
    """Check that the settings of the task suit each other, and that no other task has settings."""
    data, task = recipe.dataset, recipe.task
    for name in recipe.sections_of_other_tasks:
        section = getattr(data, name)
        if section != type(section)():
            yield _of_task(name, f"data.{name}", data.task)
    if data.sampling == "balanced" and not task.has_classes:
        rule = f'must be "natural", because the task "{task.name}" has no classes to balance'
        yield Problem("recipe.sampling_needs_classes", rule, "data.sampling", data.sampling, "Remove it.")
    yield from task.check(recipe)


def _of_task(task: str, key: str, found: str) -> Problem:
    return Problem(
        "recipe.key_of_other_task", f'must not be set for a task other than "{task}"', key, found, f"Remove {key}."
    )


def empty_or_repeated(key: str, listed: Sequence[str]) -> Iterator[Problem]:
    """Check that a list has at least one entry, each once."""
    if not listed or len(set(listed)) < len(listed):
        rule = "must have at least one entry, each once"
        yield Problem("recipe.list_empty_or_repeated", rule, key, listed, "Correct the list.")


def whole_tasks_are_evaluated(recipe: Recipe) -> Iterator[Problem]:
    """Check the settings of tasks with agent memory, whose episodes are evaluated as a whole."""
    section = recipe.evaluate
    if not recipe.task.has_agent_memory:
        if section and section.max_tasks is not None:
            rule, remedy = "must not be set for a task without agent memory", "Use evaluate.limit instead."
            yield Problem("recipe.key_of_other_task", rule, "evaluate.max_tasks", recipe.dataset.task, remedy)
        if section and section.memory != Evaluate().memory:
            rule, remedy = "must not be set for a task without agent memory", "Remove evaluate.memory."
            yield Problem("recipe.key_of_other_task", rule, "evaluate.memory", recipe.dataset.task, remedy)
        return
    if section is None:
        return
    limits = {"evaluate.limit": section.limit}
    limits[f"data.limit_{section.split}"] = getattr(recipe.dataset, f"limit_{section.split}")
    for key, most in limits.items():
        if most is not None:
            rule = "must not be set, because it cuts through tasks that are evaluated as a whole"
            yield Problem("recipe.limit_cuts_tasks", rule, key, most, "Use evaluate.max_tasks instead.")
    listed = list(section.memory)
    if "reference" not in listed or len(set(listed)) < len(listed):
        rule, remedy = 'must have "reference", and each entry once', "Correct the list."
        yield Problem("recipe.evaluated_memory_invalid", rule, "evaluate.memory", listed, remedy)


def checkpoints_are_logged(recipe: Recipe) -> Iterator[Problem]:
    """Check that every checkpoint has a log line. Otherwise a checkpoint could have a loss that is not finite."""
    run = recipe.run
    if run.checkpoint_steps % run.log_steps:
        rule, remedy = f"must divide run.checkpoint_steps (={run.checkpoint_steps})", "Change one of them."
        yield Problem("recipe.log_steps_not_divisor", rule, "run.log_steps", run.log_steps, remedy)


def validation_fits(recipe: Recipe) -> Iterator[Problem]:
    """Check that [validation] has a stage, a split, a metric of that stage, and a log line for each checkpoint."""
    section, run, data = recipe.validation, recipe.run, recipe.dataset
    if section is None:
        return
    stages = {"loss": ("grpo", recipe.grpo), "reward": ("sft", recipe.sft)}
    if not (recipe.sft or recipe.grpo):
        rule, remedy = "must not be set without [sft] or [grpo], which it validates", "Remove [validation]."
        yield Problem("recipe.validation_without_training", rule, "validation", remedy=remedy)
    if data.synthetic is not None and not data.synthetic.validation:
        rule, remedy = "must be at least 1 with [validation]", "Set it to the number of validation rows, such as 64."
        yield Problem("recipe.validation_split_missing", rule, "data.synthetic.validation", 0, remedy)
    without, present = stages.get(section.metric, ("", None))
    if present is not None:
        rule = f"must be one that [{without}] has, and {section.metric} belongs to the other stage"
        yield Problem("recipe.validation_metric", rule, "validation.metric", section.metric, 'Set "auto" or "score".')
    if section.min_improvement and section.patience is None:
        rule, remedy = "has no effect without validation.patience", "Set patience, or remove min_improvement."
        yield Problem("recipe.min_improvement_unused", rule, "validation.min_improvement", remedy=remedy)
    if section.every_steps % run.log_steps:
        rule = f"must be a multiple of run.log_steps (={run.log_steps}), so that each saved step has a log line"
        value = section.every_steps
        yield Problem("recipe.validation_not_logged", rule, "validation.every_steps", value, "Change one of them.")


def learning_rates_fit(recipe: Recipe) -> Iterator[Problem]:
    """Check that only one warmup is set, and that the parts with learning rates of their own are trained."""
    trained = recipe.model.tuning == "full" or recipe.lora.vision
    for name, section in recipe.training.items():
        if section.warmup_steps and section.warmup_fraction:
            rule, remedy = f"must not be set together with {name}.warmup_steps", "Remove one of them."
            yield Problem("recipe.two_warmups", rule, f"{name}.warmup_fraction", section.warmup_fraction, remedy)
        for key in ("vision_learning_rate", "projector_learning_rate"):
            if (rate := getattr(section, key)) is not None and not trained:
                rule = "must not be set, because the vision tower and its projector are not trained"
                remedy = f'Set lora.vision = true or model.tuning = "full", or remove {key}.'
                yield Problem("recipe.learning_rate_unused", rule, f"{name}.{key}", rate, remedy)


def adapter_is_supported(recipe: Recipe) -> Iterator[Problem]:
    """Check that the variants of LoRA suit the tuning and the rollouts."""
    lora = recipe.lora
    for key in ("rslora", "dora"):
        if getattr(lora, key) and recipe.model.tuning == "full":
            rule, remedy = 'must be false with model.tuning = "full", which has no adapter', f"Remove lora.{key}."
            yield Problem("recipe.lora_variant_unused", rule, f"lora.{key}", True, remedy)
    if lora.dora and recipe.grpo is not None and recipe.grpo.rollouts == "vllm":
        rule = 'must be false with grpo.rollouts = "vllm", because vLLM does not load DoRA adapters'
        remedy = 'Set lora.dora = false, or rollouts = "transformers".'
        yield Problem("recipe.dora_with_vllm", rule, "lora.dora", True, remedy)


def window_is_known(recipe: Recipe) -> Iterator[Problem]:
    """Check the window of images."""
    try:
        hounsfield_windows(recipe.images.window)
    except ValueError as error:
        word = str(error)
        rule = f'must be one of {", ".join(NAMES)}, or "hu:centre,width" with a width above 0, or three of these'
        remedy = nearest(word, NAMES) or "Correct the window."
        yield Problem("recipe.window_unknown", rule, "images.window", word, remedy)


def skipped_images_are_scanned(recipe: Recipe) -> Iterator[Problem]:
    """Check that the scan finds unreadable images if they are skipped, before training."""
    if recipe.images.unreadable == "skip" and recipe.images.scan in ("header", "off"):
        rule = 'must be "auto" or "full" with unreadable = "skip", because only decoding finds unreadable images'
        yield Problem("recipe.scan_finds_no_unreadable", rule, "images.scan", recipe.images.scan, 'Set scan = "auto".')


def fractions_leave_training_rows(recipe: Recipe) -> Iterator[Problem]:
    """Check that the held-out fractions sum to less than 1."""
    split = recipe.dataset.split
    if (held_out := split.validation + split.test) >= 1:
        rule = "validation + test must be less than 1"
        yield Problem("recipe.no_training_fraction", rule, "data.split", held_out, "Lower one of them.")


def evaluated_split_exists(recipe: Recipe) -> Iterator[Problem]:
    """Check that the evaluated split has a file, synthetic rows or a fraction."""
    if recipe.evaluate is None:
        return
    name, data = recipe.evaluate.split, recipe.dataset
    generated = getattr(data.synthetic, name) if data.synthetic else 0
    if getattr(data, name) is None and not getattr(data.split, name) and not generated:
        rule = "must name a split that the data have"
        remedy = f"Set data.{name} to a file, or data.split.{name} to a fraction of the rows."
        yield Problem("recipe.evaluated_split_missing", rule, "evaluate.split", name, remedy)


def rewards_are_known(recipe: Recipe) -> Iterator[Problem]:
    """Check that rewards belong to the task or are custom, and that weights are not negative."""
    own = [name.rpartition(":")[2] for name in recipe.rewards.custom]
    known = (*recipe.task.reward_weights, *own)
    for name, weight in recipe.rewards.weights.items():
        if name not in known:
            rule = f'must be a reward of the task "{recipe.dataset.task}" ({", ".join(known)}) or one of rewards.custom'
            remedy = nearest(name, known) or "Remove it."
            yield Problem("recipe.reward_unknown", rule, f"rewards.{name}", remedy=remedy)
        if not 0 <= weight <= MAX_NUMBER:
            rule, remedy = f"must be from 0 to {MAX_NUMBER:,}", "Correct the weight."
            yield Problem("recipe.out_of_range", rule, f"rewards.{name}", weight, remedy)


def custom_rewards_are_well_formed(recipe: Recipe) -> Iterator[Problem]:
    """Check that custom rewards are ``file.py:function`` with unique names."""
    taken = set(recipe.task.reward_weights)
    for text in recipe.rewards.custom:
        name = text.rpartition(":")[2]
        if not USER_CODE.fullmatch(text):
            rule, remedy = "must be file.py:function", "Write it as my_rewards.py:polite."
            yield Problem("recipe.custom_reward_malformed", rule, "rewards.custom", text, remedy)
        elif name in taken:
            rule = f"the name {name} must not be that of another reward"
            yield Problem("recipe.custom_reward_name_taken", rule, "rewards.custom", text, "Rename the function.")
        taken.add(name)


def custom_metrics_are_well_formed(recipe: Recipe) -> Iterator[Problem]:
    """Check that custom metrics are ``file.py:function`` with unique names."""
    names: set[str] = set()
    for text in recipe.evaluation.metrics:
        name = text.rpartition(":")[2]
        if not USER_CODE.fullmatch(text):
            rule, remedy = "must be file.py:function", "Write it as my_metrics.py:radgraph."
            yield Problem("recipe.custom_metric_malformed", rule, "evaluate.metrics", text, remedy)
        elif name in names:
            rule = f"the name {name} must not be that of another metric"
            yield Problem("recipe.custom_metric_name_taken", rule, "evaluate.metrics", text, "Rename the function.")
        names.add(name)


def grpo_has_a_reward(recipe: Recipe) -> Iterator[Problem]:
    """Check that GRPO has a reward with a weight above 0."""
    if recipe.grpo and not any(weight > 0 for weight in recipe.reward_weights.values()):
        rule = "must have a weight above 0 for [grpo]"
        yield Problem("recipe.rewards_all_zero", rule, "rewards", remedy="Raise at least one weight.")


def parameters_are_trainable(recipe: Recipe) -> Iterator[Problem]:
    """Check that precision, adapter and layers suit the kind of tuning."""
    model, lora = recipe.model, recipe.lora
    if model.tuning == "full" and model.precision in ("4bit", "8bit"):
        rule, remedy = 'must be "16bit" or "32bit" with tuning = "full"', 'Change it, or set tuning = "lora".'
        yield Problem("recipe.full_tuning_of_quantized", rule, "model.precision", model.precision, remedy)
    if model.tuning == "full" and model.adapter is not None:
        rule = 'must not be set with tuning = "full"'
        remedy = 'Set model.name to the merged weights, or tuning = "lora".'
        yield Problem("recipe.full_tuning_with_adapter", rule, "model.adapter", str(model.adapter), remedy)
    if model.tuning == "lora" and not lora.targets and not lora.vision:
        rule = "must name at least one layer if lora.vision is false"
        remedy = "Name layers, or set lora.vision = true."
        yield Problem("recipe.no_layer_to_train", rule, "lora.targets", list(lora.targets), remedy)


def preferences_can_be_trained(recipe: Recipe) -> Iterator[Problem]:
    """Check that DPO has rows with two different answers, and an adapter whose start is the reference."""
    dpo = recipe.dpo
    if dpo is None:
        return
    if recipe.model.tuning == "full":
        rule = 'must be "lora" with [dpo], because the reference of full fine-tuning is a second model in GPU memory'
        yield Problem("recipe.dpo_of_full_tuning", rule, "model.tuning", "full", 'Set tuning = "lora".')
    if dpo.chosen == dpo.rejected:
        rule, remedy = "must be another column than dpo.rejected", "Name the column of the other answer."
        yield Problem("recipe.dpo_columns_equal", rule, "dpo.chosen", dpo.chosen, remedy)
    for name in (dpo.chosen, dpo.rejected):
        if name in recipe.prompt.context:
            rule, remedy = "must not be in prompt.context, because it is an answer", "Remove it from prompt.context."
            yield Problem("recipe.dpo_column_in_prompt", rule, "prompt.context", name, remedy)


def model_name_is_valid(recipe: Recipe) -> Iterator[Problem]:
    """Check that the model is ``tiny``, a folder or a Hub name. Only a Hub name has revisions."""
    name, revision = recipe.model.name, recipe.model.revision
    if not is_folder_name(name) and not _HUB_NAME.fullmatch(name):
        rule = "must be tiny, a Hub name (owner/name) or a folder that starts with ./, ../, ~ or /"
        yield Problem("recipe.model_name_malformed", rule, "model.name", name, "Correct the name.")
    if revision is not None and (name == "tiny" or is_folder_name(name)):
        rule = f"must not be set, because model.name (={name}) is not a Hub name"
        yield Problem("recipe.revision_without_hub", rule, "model.revision", revision, "Remove it.")


def export_has_weights(recipe: Recipe) -> Iterator[Problem]:
    """Check that exported weights come from a training stage or an adapter."""
    if recipe.export is None:
        return
    if not (recipe.training or recipe.model.adapter):
        rule = "must have weights to export"
        remedy = "Add [sft], [dpo] or [grpo], or set model.adapter to an earlier run."
        yield Problem("recipe.nothing_to_export", rule, "export", remedy=remedy)
    for name, remedy in (("to", 'Name "adapter", "merged" or "gguf".'), ("quant", 'Name one, such as "q8_0".')):
        if not getattr(recipe.export, name):
            yield Problem("recipe.list_empty", "must have at least one entry", f"export.{name}", [], remedy)


def completions_leave_tokens_for_the_prompt(recipe: Recipe) -> Iterator[Problem]:
    """Check that the longest completion leaves tokens for its prompt."""
    validated = recipe.evaluation if recipe.evaluate or recipe.validation else None
    for name, section in (("grpo", recipe.grpo), ("evaluate", validated)):
        if section and section.max_completion_tokens >= recipe.model.max_tokens:
            rule = f"must be less than model.max_tokens (={recipe.model.max_tokens}), which includes the prompt"
            key, value = f"{name}.max_completion_tokens", section.max_completion_tokens
            yield Problem("recipe.no_tokens_for_prompt", rule, key, value, "Change one of them.")


def pairs_are_ordered(recipe: Recipe) -> Iterator[Problem]:
    """Check that lower bounds are below upper bounds."""
    low, high = recipe.images.percentiles
    if not 0 <= low < high <= 100:
        rule, remedy = "must be two numbers, 0 <= lower < upper <= 100", "Correct the numbers."
        yield Problem("recipe.percentiles_not_rising", rule, "images.percentiles", [low, high], remedy)
    grpo = recipe.grpo
    if grpo and grpo.epsilon_high is not None and grpo.epsilon_high < grpo.epsilon:
        rule = f"must be at least grpo.epsilon (={grpo.epsilon:g})"
        yield Problem("recipe.epsilons_reversed", rule, "grpo.epsilon_high", grpo.epsilon_high, "Raise it.")


def probabilities_have_no_reasoning(recipe: Recipe) -> Iterator[Problem]:
    """Check that class probabilities are not requested with reasoning, because an answer must begin with its class."""
    section = recipe.evaluate
    if section and section.probabilities and recipe.prompt.thinking and recipe.task.has_probabilities:
        rule = "must be false with prompt.thinking = true, because a completion begins with its reasoning"
        yield Problem("recipe.probabilities_of_reasoning", rule, "evaluate.probabilities", True, "Set it to false.")


def tracker_examples_fit(recipe: Recipe) -> Iterator[Problem]:
    """Check that examples have a tracker that receives them, and come from an evaluation."""
    run = recipe.run
    if run.tracker_examples and not (run.report_to and recipe.evaluate):
        rule = "must be 0 without run.report_to and [evaluate]"
        yield Problem(
            "recipe.tracker_examples_unused", rule, "run.tracker_examples", run.tracker_examples, "Remove it."
        )


CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset({"sft", "dpo", "grpo", "evaluate", "export"}), has_a_stage),
    (frozenset({"data"}), has_one_source_of_rows),
    (frozenset({"grpo"}), loss_fits),
    (frozenset({"grpo"}), resampling_fits),
    (frozenset({"run"}), checkpoints_are_logged),
    (frozenset({"run", "evaluate"}), tracker_examples_fit),
    (frozenset({"run", "data", "sft", "grpo", "validation"}), validation_fits),
    (frozenset({"model", "lora", "sft", "dpo", "grpo"}), learning_rates_fit),
    (frozenset({"model", "lora", "grpo"}), adapter_is_supported),
    (frozenset({"images"}), window_is_known),
    (frozenset({"images"}), skipped_images_are_scanned),
    (frozenset({"data"}), fractions_leave_training_rows),
    (frozenset({"data"}), task_settings_fit),
    (frozenset({"data", "evaluate"}), evaluated_split_exists),
    (frozenset({"data", "evaluate"}), whole_tasks_are_evaluated),
    (frozenset({"data", "rewards"}), rewards_are_known),
    (frozenset({"data", "rewards"}), custom_rewards_are_well_formed),
    (frozenset({"evaluate"}), custom_metrics_are_well_formed),
    (frozenset({"data", "rewards", "grpo"}), grpo_has_a_reward),
    (frozenset({"model", "lora"}), parameters_are_trainable),
    (frozenset({"model", "data", "dpo"}), preferences_can_be_trained),
    (frozenset({"model"}), model_name_is_valid),
    (frozenset({"model", "sft", "dpo", "grpo", "export"}), export_has_weights),
    (frozenset({"prompt", "evaluate", "data"}), probabilities_have_no_reasoning),
    (frozenset({"model", "grpo", "evaluate", "validation"}), completions_leave_tokens_for_the_prompt),
    (frozenset({"images", "grpo"}), pairs_are_ordered),
)
"""Sections that a check reads, and the check. It is skipped if one of these sections has errors."""


def missing_requirements(recipe: Recipe) -> list[Problem]:
    """Return missing files, folders and packages. ``load_recipe(files=True)`` rejects them."""
    return [*missing_files(recipe), *missing_packages(recipe)]


def missing_files(recipe: Recipe) -> Iterator[Problem]:
    """Yield files and folders of the recipe that do not exist."""
    for name in ("train", "validation", "test"):
        source = getattr(recipe.dataset, name)
        if source is not None and not source.startswith("hub:") and not _source_exists(source):
            yield missing("recipe.rows_missing", "must be an existing file or folder", f"data.{name}", source)
    if recipe.dataset.image_root is not None and not recipe.dataset.image_root.is_dir():
        rule = "must be an existing folder"
        yield missing("recipe.folder_missing", rule, "data.image_root", recipe.dataset.image_root)
    for name in path_keys(type(recipe.settings)):
        file = getattr(recipe.settings, name)
        if file is not None and not file.is_file():
            yield missing("recipe.file_missing", "must be an existing file", f"data.{recipe.task.name}.{name}", file)
    if recipe.model.adapter is not None and not recipe.model.adapter.exists():
        yield missing(
            "recipe.adapter_missing", "must be an existing run or adapter", "model.adapter", recipe.model.adapter
        )
    if is_folder_name(recipe.model.name) and not Path(recipe.model.name).is_dir():
        yield missing("recipe.folder_missing", "must be an existing folder", "model.name", recipe.model.name)
    code = {"rewards.custom": recipe.rewards.custom, "evaluate.metrics": recipe.evaluation.metrics}
    files = [(key, Path(entry.rpartition(":")[0])) for key, entries in code.items() for entry in entries]
    template = recipe.prompt.chat_template
    for key, file in (*files, *([] if template is None else [("prompt.chat_template", template)])):
        if not file.is_file():
            yield missing("recipe.file_missing", "must be an existing file", key, file)


def _source_exists(source: str) -> bool:
    """Return whether a file or folder exists, with or without the ``#split`` at its end."""
    return Path(source).exists() or ("#" in source and Path(source.rpartition("#")[0]).exists())


def path_keys(section: type[object]) -> tuple[str, ...]:
    """Return the keys of a task's settings whose value is a file, which are those of type Path."""
    fields = section.model_fields if issubclass(section, BaseModel) else {}
    return tuple(name for name, info in fields.items() if Path in (info.annotation, *get_args(info.annotation)))


def missing(code: str, rule: str, key: str, path: Path | str) -> Problem:
    """Return the problem of a path that does not exist."""
    return Problem(code, rule, key, str(path), "Correct the path.")


def missing_packages(recipe: Recipe) -> Iterator[Problem]:
    """Yield experiment trackers that are not installed."""
    for package in recipe.run.report_to:
        if find_spec(package) is None:
            remedy = install_command("tracking")
            yield Problem("recipe.tracker_not_installed", "must be installed", "run.report_to", package, remedy)
