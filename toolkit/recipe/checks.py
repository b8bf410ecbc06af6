"""What must hold between sections, and which files a recipe points to must be there."""

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import Problem, RecipeError
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.problems import found, nearest
from toolkit.recipe.sections import REWARD_WEIGHTS, Evaluate, Lesion, Recipe, Steps

Finding = tuple[str, str]
"""A dotted key and what is wrong with it."""

Check = Callable[[Recipe], Iterator[Finding]]

PHANTOM_TASKS: Mapping[str, str] = {
    "chest": "mcq",
    "chest_vqa": "vqa",
    "lesion": "lesion",
    "steps": "steps",
}
"""Kind of practice data -> the task it is written for."""

SMALLEST: Mapping[str, tuple[int, str]] = {"lesion": (96, "lesions"), "steps": (112, "screens")}
"""Kind of practice data -> how wide its pictures are at least, in pixels, and what they show."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_CUSTOM_REWARD = re.compile(r".+\.py:[A-Za-z_]\w*")


def is_folder_name(model: str) -> bool:
    """Whether ``model.name`` means a folder (it starts with ``./``, ``../``, ``~`` or ``/``) and not a Hub name."""
    return model in (".", "..") or model.startswith(("./", "../", "~")) or Path(model).is_absolute()


def for_language_models(recipe: Recipe, command: str) -> Recipe:
    """Return the recipe, if it is one of a vision-language model.

    Args:
        recipe: of a command that cannot work on image generators yet.
        command: how the user calls it.

    Raises:
        RecipeError: the recipe has [imagegen].
    """
    if recipe.imagegen is not None:
        text = f"{command} works on vision-language models, and this recipe is for image generation ([imagegen])"
        raise RecipeError(
            [Problem(recipe.run.name, f"{text}. `toolkit run` and `toolkit imagegen` work on image generators")]
        )
    return recipe


def for_image_generators(recipe: Recipe, command: str) -> Imagegen:
    """Return the section [imagegen] of a recipe.

    Args:
        recipe: of a command that works on image generators only.
        command: how the user calls it.

    Raises:
        RecipeError: the recipe is one of a vision-language model.
    """
    if recipe.imagegen is None:
        text = f"{command} works on image generators, and this recipe has no section [imagegen]"
        raise RecipeError([Problem(recipe.run.name, f"{text}. Choose the run of a recipe with [imagegen]")])
    return recipe.imagegen


def something_to_do(recipe: Recipe) -> Iterator[Finding]:
    """At least one stage."""
    if not (recipe.sft or recipe.grpo or recipe.evaluate or recipe.export):
        yield "", "has nothing to do: add a section [sft], [grpo], [evaluate] or [export]"


def one_source_of_rows(recipe: Recipe) -> Iterator[Finding]:
    """Files or practice data, not both, not neither."""
    data = recipe.data
    if data.phantom is None and data.train is None:
        yield "data", "needs rows: name a file in data.train, or add [data.phantom] for practice data"
    for name in ("train", "validation", "test", "image_root"):
        value = getattr(data, name)
        if data.phantom is not None and value is not None:
            yield f"data.{name}", f"cannot stand beside [data.phantom], which writes its own rows{found(str(value))}"
        if value is not None and not str(value):
            yield f"data.{name}", "must not be empty"
    if data.phantom is not None and data.phantom.kind in SMALLEST:
        least, shown = SMALLEST[data.phantom.kind]
        if data.phantom.size < least:
            yield "data.phantom.size", f"must be at least {least} for {shown}{found(data.phantom.size)}"
    if data.phantom is not None and data.task != PHANTOM_TASKS[data.phantom.kind]:
        wanted = PHANTOM_TASKS[data.phantom.kind]
        yield "data.task", f'must be "{wanted}" with [data.phantom] kind = "{data.phantom.kind}"{found(data.task)}'


def loss_fits(recipe: Recipe) -> Iterator[Finding]:
    """CISPO caps the ratio itself, which is 1 on policy; GSPO is the sequence ratio under GRPO's own loss."""
    grpo = recipe.grpo
    if grpo is None:
        return
    if grpo.loss == "cispo" and (grpo.epsilon_high is None or grpo.epsilon_high < 1):
        rule = 'must be at least 1 with loss = "cispo", which caps the ratio at it (arXiv 2506.13585 takes 5)'
        yield "grpo.epsilon_high", f"{rule}{found(grpo.epsilon_high)}"
    if grpo.importance == "sequence" and grpo.loss != "grpo":
        yield "grpo.loss", f'must be "grpo" with importance = "sequence" (GSPO){found(grpo.loss)}'


def lesion_settings_fit(recipe: Recipe) -> Iterator[Finding]:
    """[data.lesion] belongs to its task, and asks for something."""
    data = recipe.data
    if data.task != "lesion":
        if data.lesion != Lesion():
            yield "data.lesion", f'belongs to the task "lesion"{found(data.task)}'
        if data.sampling == "balanced":
            yield "data.sampling", f'must be "natural": only the task "lesion" has classes to balance{found(data.task)}'
    elif not {"diagnosis", "location", "bbox", "polygon"} & set(data.lesion.answer):
        yield "data.lesion.answer", f"must hold diagnosis, location, bbox or polygon{found(list(data.lesion.answer))}"
    elif len(set(data.lesion.answer)) < len(data.lesion.answer):
        yield "data.lesion.answer", f"must name each part once{found(list(data.lesion.answer))}"


def step_settings_fit(recipe: Recipe) -> Iterator[Finding]:
    """[data.steps] belongs to its task, shows something, and asks for an action."""
    steps = recipe.data.steps
    if recipe.data.task != "steps":
        if steps != Steps():
            yield "data.steps", f'belongs to the task "steps"{found(recipe.data.task)}'
        return
    for name in ("sections", "answer", "actions"):
        listed = getattr(steps, name)
        if not listed or len(set(listed)) < len(listed):
            yield f"data.steps.{name}", f"must name at least one, and each once{found(list(listed))}"
    if "predicted" not in steps.answer:
        yield "data.steps.answer", f'must hold "predicted": the action is what is judged{found(list(steps.answer))}'
    if steps.drop_memory + steps.corrupt_memory > 1:
        both = steps.drop_memory + steps.corrupt_memory
        yield "data.steps.corrupt_memory", f"and drop_memory must be at most 1 together{found(both)}"
    if (steps.drop_memory or steps.corrupt_memory) and not {"short_term", "long_term"} & set(steps.sections):
        yield "data.steps.sections", f"must hold a memory where some are dropped{found(list(steps.sections))}"
    if steps.task_start is not None and steps.task_end is not None and steps.task_start > steps.task_end:
        yield "data.steps.task_end", f"must be at least task_start (={steps.task_start}){found(steps.task_end)}"


def whole_tasks_are_evaluated(recipe: Recipe) -> Iterator[Finding]:
    """Steps are held out by whole tasks and asked with memories; nothing else has either."""
    section = recipe.evaluate
    if recipe.data.task != "steps":
        if section and section.max_tasks is not None:
            yield "evaluate.max_tasks", f'belongs to the task "steps"; use evaluate.limit{found(recipe.data.task)}'
        if section and section.memory != Evaluate().memory:
            yield "evaluate.memory", f'belongs to the task "steps"{found(recipe.data.task)}'
        return
    if section is None:
        return
    if section.limit is not None:
        rule = "cuts through tasks, which are judged whole: use evaluate.max_tasks"
        yield "evaluate.limit", rule + found(section.limit)
    if (most := getattr(recipe.data, f"limit_{section.split}")) is not None:
        rule = "cuts through the tasks of [evaluate], which are judged whole: use evaluate.max_tasks"
        yield f"data.limit_{section.split}", rule + found(most)
    if "reference" not in section.memory or len(set(section.memory)) < len(section.memory):
        yield "evaluate.memory", f'must hold "reference", and each name once{found(list(section.memory))}'


def checkpoints_are_looked_at(recipe: Recipe) -> Iterator[Finding]:
    """A loss that is not finite is seen in the log; a checkpoint between two lines of it could hold one."""
    run = recipe.run
    if run.checkpoint_steps % run.log_steps:
        yield "run.log_steps", f"must divide run.checkpoint_steps (={run.checkpoint_steps}){found(run.log_steps)}"


def skipped_pictures_are_known(recipe: Recipe) -> Iterator[Finding]:
    """What is to be skipped must be known before training."""
    if recipe.images.unreadable == "skip" and recipe.images.scan in ("header", "off"):
        rule = 'must be "auto" or "full" with unreadable = "skip": only decoding shows what must be skipped'
        yield "images.scan", f"{rule}{found(recipe.images.scan)}"


def shares_leave_training_rows(recipe: Recipe) -> Iterator[Finding]:
    """The held-out shares sum to less than 1."""
    split = recipe.data.split
    if split.validation + split.test >= 1:
        yield "data.split", f"validation + test must be less than 1{found(split.validation + split.test)}"


def evaluated_split_exists(recipe: Recipe) -> Iterator[Finding]:
    """The split that [evaluate] names has a file, practice rows or a share."""
    if recipe.evaluate is None:
        return
    name, data = recipe.evaluate.split, recipe.data
    generated = getattr(data.phantom, name) if data.phantom else 0
    if getattr(data, name) is None and not getattr(data.split, name) and not generated:
        remedy = f"set data.{name} to a file, or data.split.{name} to a share of the rows"
        yield "evaluate.split", f'names "{name}", and the data have none: {remedy}'


def known_rewards(recipe: Recipe) -> Iterator[Finding]:
    """Reward names belong to the task or to the user's own rewards; weights are not negative."""
    own = [name.rpartition(":")[2] for name in recipe.rewards.custom]
    known = (*REWARD_WEIGHTS[recipe.data.task], *own)
    for name, weight in recipe.rewards.weights.items():
        if name not in known:
            rule = f'is not a reward of the task "{recipe.data.task}" ({", ".join(known)}) nor one of rewards.custom'
            yield f"rewards.{name}", rule + nearest(name, known)
        if weight < 0:
            yield f"rewards.{name}", f"must be at least 0{found(weight)}"


def well_formed_custom_rewards(recipe: Recipe) -> Iterator[Finding]:
    """``file.py:function``, each function name once and none of the task's own."""
    taken = set(REWARD_WEIGHTS[recipe.data.task])
    for text in recipe.rewards.custom:
        name = text.rpartition(":")[2]
        if not _CUSTOM_REWARD.fullmatch(text):
            yield "rewards.custom", f"must be file.py:function, such as my_rewards.py:polite{found(text)}"
        elif name in taken:
            yield "rewards.custom", f"the name {name} is taken: call the function differently{found(text)}"
        taken.add(name)


def something_to_reward(recipe: Recipe) -> Iterator[Finding]:
    """GRPO has at least one reward that counts."""
    if recipe.grpo and not any(weight > 0 for weight in recipe.reward_weights.values()):
        yield "rewards", "every weight is 0: [grpo] needs at least one reward above 0"


def trainable_weights(recipe: Recipe) -> Iterator[Finding]:
    """What is to be trained can be trained."""
    model, lora = recipe.model, recipe.lora
    if model.tuning == "full" and model.precision in ("4bit", "8bit"):
        yield "model.precision", f'must be "16bit" or "32bit" when model.tuning is "full"{found(model.precision)}'
    if model.tuning == "full" and model.adapter is not None:
        remedy = 'name the merged weights as model.name instead, or set tuning = "lora"'
        yield "model.adapter", f'cannot be used when model.tuning is "full": {remedy}{found(str(model.adapter))}'
    if model.tuning == "lora" and not lora.targets and not lora.vision:
        yield "lora.targets", "names no layer, and lora.vision is false: nothing would be trained"


def named_model(recipe: Recipe) -> Iterator[Finding]:
    """A model's name is ``tiny``, a folder or a Hub name; only a Hub name has revisions."""
    name, revision = recipe.model.name, recipe.model.revision
    if not is_folder_name(name) and not _HUB_NAME.fullmatch(name):
        rule = "must be tiny, a Hub name (owner/name) or a folder that starts with ./, ../, ~ or /"
        yield "model.name", rule + found(name)
    if revision is not None and (name == "tiny" or is_folder_name(name)):
        yield "model.revision", f"belongs to a Hub name, and model.name is {name}{found(revision)}"


def something_to_export(recipe: Recipe) -> Iterator[Finding]:
    """Exported weights come from a training stage or an earlier adapter."""
    if recipe.export is None:
        return
    if not (recipe.sft or recipe.grpo or recipe.model.adapter):
        yield "export", "has nothing to export: add [sft] or [grpo], or name an earlier run in model.adapter"
    if not recipe.export.to:
        yield "export.to", 'is empty: name "adapter", "merged", "gguf" or several'
    if not recipe.export.quant:
        yield "export.quant", 'is empty: name at least one, such as "q8_0"'


def room_for_the_prompt(recipe: Recipe) -> Iterator[Finding]:
    """A completion leaves room for its prompt."""
    for name, section in (("grpo", recipe.grpo), ("evaluate", recipe.evaluate)):
        if section and section.max_completion_tokens >= recipe.model.max_tokens:
            rule = f"must be less than model.max_tokens (={recipe.model.max_tokens}), which holds the prompt too"
            yield f"{name}.max_completion_tokens", rule + found(section.max_completion_tokens)


def ordered_pairs(recipe: Recipe) -> Iterator[Finding]:
    """Lower bounds stand below upper bounds."""
    low, high = recipe.images.percentiles
    if not 0 <= low < high <= 100:
        yield "images.percentiles", f"must be two numbers, 0 <= lower < upper <= 100{found([low, high])}"
    grpo = recipe.grpo
    if grpo and grpo.epsilon_high is not None and grpo.epsilon_high < grpo.epsilon:
        yield "grpo.epsilon_high", f"must be at least grpo.epsilon (={grpo.epsilon:g}){found(grpo.epsilon_high)}"


CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset({"sft", "grpo", "evaluate", "export"}), something_to_do),
    (frozenset({"data"}), one_source_of_rows),
    (frozenset({"grpo"}), loss_fits),
    (frozenset({"run"}), checkpoints_are_looked_at),
    (frozenset({"images"}), skipped_pictures_are_known),
    (frozenset({"data"}), shares_leave_training_rows),
    (frozenset({"data"}), lesion_settings_fit),
    (frozenset({"data"}), step_settings_fit),
    (frozenset({"data", "evaluate"}), evaluated_split_exists),
    (frozenset({"data", "evaluate"}), whole_tasks_are_evaluated),
    (frozenset({"data", "rewards"}), known_rewards),
    (frozenset({"data", "rewards"}), well_formed_custom_rewards),
    (frozenset({"data", "rewards", "grpo"}), something_to_reward),
    (frozenset({"model", "lora"}), trainable_weights),
    (frozenset({"model"}), named_model),
    (frozenset({"model", "sft", "grpo", "export"}), something_to_export),
    (frozenset({"model", "grpo", "evaluate"}), room_for_the_prompt),
    (frozenset({"images", "grpo"}), ordered_pairs),
)
"""The sections a check looks at, and the check: it is left out while one of them has problems of its own."""


def absent(recipe: Recipe) -> list[Finding]:
    """Files, folders and packages that the recipe names and that are not there: loading refuses them if asked to."""
    return [*missing_files(recipe), *missing_packages(recipe)]


def missing_files(recipe: Recipe) -> Iterator[Finding]:
    """Files and folders that the recipe names and that are not there."""
    for name in ("train", "validation", "test"):
        source = getattr(recipe.data, name)
        if source is not None and not source.startswith("hub:") and not Path(source).exists():
            yield f"data.{name}", f"there is no file or folder {source}"
    if recipe.data.image_root is not None and not recipe.data.image_root.is_dir():
        yield "data.image_root", f"there is no folder {recipe.data.image_root}"
    if recipe.data.lesion.labels is not None and not recipe.data.lesion.labels.is_file():
        yield "data.lesion.labels", f"there is no file {recipe.data.lesion.labels}"
    if recipe.model.adapter is not None and not recipe.model.adapter.exists():
        yield "model.adapter", f"there is no run or adapter {recipe.model.adapter}"
    if is_folder_name(recipe.model.name) and not Path(recipe.model.name).is_dir():
        yield "model.name", f"there is no folder {recipe.model.name}"
    for reward in recipe.rewards.custom:
        file = Path(reward.rpartition(":")[0])
        if not file.is_file():
            yield "rewards.custom", f"there is no file {file}"


def missing_packages(recipe: Recipe) -> Iterator[Finding]:
    """Experiment trackers that are not installed."""
    for package in recipe.run.report_to:
        if find_spec(package) is None:
            yield "run.report_to", f"{package} is not installed: pip install -e '.[tracking]' -c constraints.txt"
