"""The recipe: loading, every problem at once, --set, and the way back to TOML."""

import os
from pathlib import Path

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import REWARD_WEIGHTS, Grpo, Recipe, changed_keys, checks, dump_recipe, load_recipe
from toolkit.recipe.checks import CHECKS
from toolkit.recipe.problems import FOREIGN, TABLES

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))

SMALL = """
[run]
name = "small"
[data]
task = "mcq"
train = "rows.json"
[grpo]
"""


def write(folder: Path, text: str = SMALL, name: str = "recipe.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def problems(path: Path, *overrides: str, files: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, files=files)
    return [str(problem).replace(str(path), "recipe.toml") for problem in caught.value.problems]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads_and_survives_dump_and_load(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_a_dump_writes_every_default_out_and_keeps_awkward_values(tmp_path: Path) -> None:
    text = SMALL + '[prompt]\nsystem = """Two "quoted" lines\\nand a \\\\ backslash é"""\n[sft]\n'
    recipe = load_recipe(write(tmp_path, text), ["grpo.learning_rate=1e-7", "data.columns={question='Q. 1'}"])
    dumped = dump_recipe(recipe)
    assert "accumulation = 8" in dumped
    assert load_recipe(write(tmp_path, dumped, "again.toml")) == recipe


def test_the_values_of_the_medgemma_recipe_are_those_of_the_scripts_it_replaces() -> None:
    recipe = load_recipe(RECIPES[0].parent / "medgemma_grpo.toml")
    assert (recipe.model.name, recipe.model.precision) == ("google/medgemma-4b-it", "4bit")
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, len(recipe.lora.targets)) == (16, 32, 0.05, 7)
    grpo = recipe.grpo
    assert grpo is not None
    assert (grpo.learning_rate, grpo.generations, grpo.max_completion_tokens, grpo.beta) == (5e-6, 4, 128, 0.0)
    # Batch 1 with 8 accumulation steps: eight completions a step, one at a time.
    assert (grpo.completions_per_step, grpo.micro_batch) == (8, 1)
    assert recipe.reward_weights == REWARD_WEIGHTS["mcq"]


def test_a_section_switches_its_stage_on_and_set_creates_sections(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_recipe(path).sft is None
    recipe = load_recipe(path, ["sft.learning_rate=3e-4", "evaluate={}"])
    assert recipe.sft is not None
    assert recipe.sft.learning_rate == 3e-4
    assert recipe.evaluate is not None


def test_set_takes_toml_values_and_bare_words(tmp_path: Path) -> None:
    settings = [
        "grpo.learning_rate=1e-6",
        "grpo.mask_truncated=true",
        'run.report_to=["wandb"]',
        "model.name=google/medgemma-4b-it",
        'run.name="7"',
        "run.name=second",
        "data.columns.question=Q",
    ]
    recipe = load_recipe(write(tmp_path), settings)
    assert recipe.grpo is not None
    assert (recipe.grpo.learning_rate, recipe.grpo.mask_truncated) == (1e-6, True)
    assert (recipe.run.report_to, recipe.run.name) == (("wandb",), "second")
    assert (recipe.model.name, recipe.data.columns) == ("google/medgemma-4b-it", {"question": "Q"})
    assert dict(recipe.reward_weights) == dict(REWARD_WEIGHTS["mcq"])


def test_set_does_not_let_text_pass_for_a_number(tmp_path: Path) -> None:
    assert problems(write(tmp_path), "grpo.beta=.5", 'grpo.top_k="3"', "run.name=7", "grpo.mask_truncated=1") == [
        "--set run.name: must be text, in quotes (found 7)",
        "--set grpo.top_k: must be a whole number (found '3')",
        "--set grpo.beta: must be a number (found '.5')",
        "--set grpo.mask_truncated: must be true or false (found 1)",
    ]


def test_a_wrong_set_says_what_is_nearest(tmp_path: Path) -> None:
    assert problems(write(tmp_path), "grpo", "grpo.learning_rte=1", "learning_rate=1", "run.report_to=[wandb]") == [
        "--set grpo: must be key=value, such as grpo.learning_rate=1e-6",
        "--set run.report_to: [wandb] is not a TOML value: Invalid value (at line 1, column 10)",
        "--set grpo.learning_rte: is not a key of [grpo]; nearest: learning_rate",
        "--set learning_rate: is not a section of a recipe; learning_rate belongs to [sft] or [grpo]",
    ]


def test_all_problems_are_told_at_once_with_file_key_rule_and_value(tmp_path: Path) -> None:
    text = """
[run]
nam = "x"
[model]
precision = "5bit"
learning_rate = 1e-4
[data]
task = "mcq"
train = "rows.json"
[data.split]
validation = 0.6
test = 0.5
[images]
percentiles = [90, 10]
max_side = 8
[grpo]
generations = 1
temperature = inf
num_generations = 4
micro_batch = 1.5
[gpro]
[rewards]
leter = 1
brevity = -1
custom = ["polite"]
"""
    assert problems(write(tmp_path, text)) == [
        "recipe.toml: run.name: is missing and has no default",
        "recipe.toml: run.nam: is not a key of [run]; nearest: name",
        "recipe.toml: model.precision: must be 'auto', '4bit', '8bit', '16bit' or '32bit' (found '5bit')",
        "recipe.toml: model.learning_rate: is not a key of [model]; learning_rate belongs to [sft] or [grpo]",
        "recipe.toml: images.max_side: must be at least 16 (found 8)",
        "recipe.toml: grpo.generations: must be at least 2 (found 1)",
        "recipe.toml: grpo.micro_batch: must be a whole number (found 1.5)",
        "recipe.toml: grpo.temperature: must be a finite number (found inf)",
        "recipe.toml: grpo.num_generations: is not a key of [grpo]; here it is called grpo.generations",
        "recipe.toml: gpro: is not a section of a recipe; nearest: grpo",
        # [data] and [rewards] are right by themselves, so what must hold between them is told too.
        "recipe.toml: data.split: validation + test must be less than 1 (found 1.1)",
        "recipe.toml: rewards.brevity: must be at least 0 (found -1.0)",
        'recipe.toml: rewards.leter: is not a reward of the task "mcq" (letter, explanation, evidence, format, brevity,'
        " polite) nor one of rewards.custom; nearest: letter",
        "recipe.toml: rewards.custom: must be file.py:function, such as my_rewards.py:polite (found 'polite')",
    ]


CROSS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "nothing to do": (SMALL.replace("[grpo]", ""), (), "has nothing to do"),
    "no rows": (SMALL.replace('train = "rows.json"', ""), (), "data: needs rows"),
    "rows and phantom": (SMALL, ("data.phantom.kind=chest",), "data.train: cannot stand beside [data.phantom]"),
    "phantom of another task": (
        SMALL.replace('train = "rows.json"', ""),
        ("data.phantom.kind=chest", "data.task=vqa"),
        'data.task: must be "mcq" with [data.phantom] kind = "chest"',
    ),
    "no validation": (SMALL, ("evaluate.split=validation",), 'names "validation", and the data have none'),
    "every weight 0": (
        SMALL,
        tuple(f"rewards.{name}=0" for name in REWARD_WEIGHTS["mcq"]),
        "every weight is 0",
    ),
    "infinite weight": (SMALL, ("rewards.letter=inf",), "rewards.letter: must be a finite number"),
    "full in 4 bits": (SMALL, ("model.tuning=full", "model.precision=4bit"), 'must be "16bit" or "32bit"'),
    "full from an adapter": (SMALL, ("model.tuning=full", "model.adapter=a"), "model.adapter: cannot be used"),
    "no layer": (SMALL, ("lora.targets=[]",), "nothing would be trained"),
    "revision of tiny": (SMALL, ("model.revision=main",), "belongs to a Hub name"),
    "no model": (SMALL, ("model.name=a/b/c",), "must be tiny, a Hub name"),
    "nothing to export": (SMALL.replace("[grpo]", "[export]"), (), "export: has nothing to export"),
    "export to nothing": (SMALL, ("export.to=[]",), "export.to: is empty"),
    "no room": (SMALL, ("model.max_tokens=128",), "grpo.max_completion_tokens: must be less than model.max_tokens"),
    "epsilon": (SMALL, ("grpo.epsilon_high=0.1",), "grpo.epsilon_high: must be at least grpo.epsilon (=0.2)"),
    "micro batch": (SMALL, ("grpo.micro_batch=3",), "micro_batch (=3) must divide prompts_per_step * generations (=8)"),
    "reward of that name": (SMALL, ('rewards.custom=["a.py:letter"]',), "the name letter is taken"),
    "one percentile": (SMALL, ("images.percentiles=[1]",), "images.percentiles.1: is missing"),
    "no list": (SMALL, ("run.report_to=wandb",), "run.report_to: must be a list"),
    "no table": (SMALL, ("images=3",), "images: must be a table"),
    "no section": (SMALL.replace("[run]", "[rum]"), (), "run: the section [run] is missing"),
}


@pytest.mark.parametrize("case", CROSS)
def test_what_must_hold_between_keys_is_told_as_one_problem_that_names_it(case: str, tmp_path: Path) -> None:
    text, settings, expected = CROSS[case]
    told = problems(write(tmp_path, text), *settings)
    assert sum(expected in problem for problem in told) == 1, told
    assert len(told) == (2 if case == "no section" else 1), told  # that one also has the unknown section [rum]


def test_an_adapter_alone_may_be_exported_and_evaluated(tmp_path: Path) -> None:
    text = SMALL.replace("[grpo]", "[evaluate]\n[export]")
    recipe = load_recipe(write(tmp_path, text), ["model.adapter=runs/earlier"])
    assert recipe.grpo is None


def test_paths_start_at_the_recipe_and_paths_of_set_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = SMALL + '[model]\nname = "../base"\n[rewards]\ncustom = ["mine.py:polite"]\n'
    path = write(tmp_path / "recipes", text)
    relative = Path(os.path.relpath(path))
    recipe = load_recipe(
        relative, ["data.test=test.json", "data.validation=hub:owner/name#val", "model.adapter=../old"]
    )
    assert recipe.data.train == str(tmp_path / "recipes" / "rows.json")
    assert recipe.data.test == str(tmp_path / "elsewhere" / "test.json")
    assert recipe.data.validation == "hub:owner/name#val"
    assert recipe.model.adapter == tmp_path / "old"
    assert recipe.model.name == str(tmp_path / "base")
    assert recipe.rewards.custom == (f"{tmp_path / 'recipes' / 'mine.py'}:polite",)
    assert recipe.reward_weights["polite"] == 1.0
    assert recipe.run_folder == Path("runs/small")
    assert load_recipe(path, ["data.train=~/rows.json"]).data.train == str(Path.home() / "rows.json")
    assert load_recipe(path, ["data.train=~nobody-here/a"]).data.train == str(tmp_path / "elsewhere/~nobody-here/a")


def test_files_that_are_not_there_are_all_told_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + '[rewards]\ncustom = ["mine.py:polite"]\n[model]\nadapter = "old"\n')
    load_recipe(path)
    assert problems(path, files=True) == [
        f"recipe.toml: data.train: there is no file or folder {tmp_path / 'rows.json'}",
        f"recipe.toml: model.adapter: there is no run or adapter {tmp_path / 'old'}",
        f"recipe.toml: rewards.custom: there is no file {tmp_path / 'mine.py'}",
    ]


def test_a_syntax_error_names_the_line_and_shows_it(tmp_path: Path) -> None:
    (told,) = problems(write(tmp_path, '[run]\nname = "a"\nlearning_rate 5\n'))
    assert told.startswith("recipe.toml, line 3, column 15: is not valid TOML: ")
    assert told.endswith(": learning_rate 5")


def test_a_recipe_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, name="quickstart.toml")
    (told,) = problems(tmp_path / "quikstart.toml")
    assert told.endswith(f"there is no such file; nearest: {tmp_path / 'quickstart.toml'}")


def test_a_byte_order_mark_is_read_and_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe(path).run.name == "small"
    path.write_bytes(SMALL.encode("utf-16"))
    assert "must be UTF-8 text" in problems(path)[0]


def test_changed_keys_name_old_and_new_and_sections_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path)
    old = load_recipe(path, ["evaluate.limit=5"])
    new = load_recipe(path, ["grpo.beta=0.1", "sft={}", "evaluate={}"])
    assert changed_keys(old, old) == {}
    assert changed_keys(old, new) == {"sft": ("off", "on"), "grpo.beta": (0.0, 0.1), "evaluate.limit": (5, None)}


def test_a_loaded_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        recipe.run.seed = 1  # type: ignore[misc]


def test_the_tables_of_checks_and_hints_name_what_exists() -> None:
    assert {section for sections, _ in CHECKS for section in sections} <= set(Recipe.model_fields)
    known = {key for keys in TABLES.values() for key in keys}
    assert not known & set(FOREIGN)
    assert TABLES["data", "split"] == ("validation", "test")
    assert TABLES["grpo",] == tuple(Grpo.model_fields)


@pytest.mark.parametrize(
    ("text", "place", "rule"),
    [
        ('[run]\nname = "r"\nlog_steps = 10\ncheckpoint_steps = 25\n', "run.log_steps", "must divide"),
        ('[run]\nname = "r"\n[images]\nunreadable = "skip"\nscan = "header"\n', "images.scan", "only decoding shows"),
        ('[run]\nname = "r"\n[data.lesion]\ngrid = 5\n', "data.lesion", 'belongs to the task "lesion"'),
    ],
)
def test_settings_that_would_hide_something_are_refused(tmp_path: Path, text: str, place: str, rule: str) -> None:
    file = tmp_path / "r.toml"
    # A sub-table of [data] must stand behind it.
    file.write_text('[sft]\n[data]\ntask = "mcq"\ntrain = "rows.json"\n' + text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert place in str(caught.value)
    assert rule in str(caught.value)


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    file = tmp_path / "r.toml"
    file.write_text(
        '[run]\nname = "r"\nreport_to = ["wandb"]\n[sft]\n[data]\ntask = "mcq"\n[data.phantom]\nkind = "chest"\n'
    )
    with pytest.raises(RecipeError, match=r"run\.report_to.*wandb is not installed"):
        load_recipe(file, files=True)
    load_recipe(file)
