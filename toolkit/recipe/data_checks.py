"""Rules between keys about rows, images, tasks, splits, rewards and metrics. A problem's place is a dotted key."""

from collections.abc import Iterator, Sequence

from toolkit.errors import Problem
from toolkit.recipe.base import RecipeSynthetic
from toolkit.recipe.problems import nearest
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sections import MAX_NUMBER, SyntheticData
from toolkit.recipe.stage_sections import Evaluate
from toolkit.recipe.user_code import USER_CODE
from toolkit.recipe.windows import NAMES, hounsfield_windows


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


def probabilities_have_no_reasoning(recipe: Recipe) -> Iterator[Problem]:
    """Check that class probabilities are not requested with reasoning, because an answer must begin with its class."""
    section = recipe.evaluate
    if section and section.probabilities and recipe.prompt.thinking and recipe.task.has_probabilities:
        rule = "must be false with prompt.thinking = true, because a completion begins with its reasoning"
        yield Problem("recipe.probabilities_of_reasoning", rule, "evaluate.probabilities", True, "Set it to false.")
