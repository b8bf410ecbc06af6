"""The recipe: loading, all problems together, --set, and writing TOML."""

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import CODE, NOTHING, Problem, RecipeError
from toolkit.recipe import Grpo, Recipe, changed_keys, dump_recipe, recipe_model, requirements
from toolkit.recipe.checks import CHECKS
from toolkit.recipe.problems import FOREIGN, section_in, tables_of
from toolkit.recipe.renamed import RENAMED
from toolkit.tasks import TASKS

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


def problems(path: Path, *overrides: str, files: bool = False) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, files=files)
    found = caught.value.problems
    assert all(CODE.fullmatch(problem.code) for problem in found), found
    return [replace(problem, place=problem.place.replace(str(path), "recipe.toml")) for problem in found]


def facts(found: list[Problem]) -> list[tuple[str, str, object]]:
    return [(problem.code, problem.place, problem.value) for problem in found]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads_and_survives_dump_and_load(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_a_dump_has_every_default_and_preserves_special_values(tmp_path: Path) -> None:
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
    assert recipe.reward_weights == TASKS["mcq"].reward_weights


def test_a_section_enables_its_stage_and_set_creates_sections(tmp_path: Path) -> None:
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
    assert (recipe.model.name, recipe.dataset.columns) == ("google/medgemma-4b-it", {"question": "Q"})
    assert dict(recipe.reward_weights) == dict(TASKS["mcq"].reward_weights)


def test_set_rejects_text_for_a_number(tmp_path: Path) -> None:
    found = problems(write(tmp_path), "grpo.beta=.5", 'grpo.top_k="3"', "run.name=7", "grpo.mask_truncated=1")
    assert facts(found) == [
        ("recipe.wrong_type", "--set run.name", 7),
        ("recipe.wrong_type", "--set grpo.top_k", "3"),
        ("recipe.wrong_type", "--set grpo.beta", ".5"),
        ("recipe.wrong_type", "--set grpo.mask_truncated", 1),
    ]


def test_an_invalid_set_has_a_suggestion(tmp_path: Path) -> None:
    found = problems(write(tmp_path), "grpo", "grpo.learning_rte=1", "learning_rate=1", "run.report_to=[wandb]")
    assert facts(found) == [
        ("recipe.set_malformed", "--set grpo", NOTHING),
        ("recipe.set_value_not_toml", "--set run.report_to", "[wandb]"),
        ("recipe.key_unknown", "--set grpo.learning_rte", NOTHING),
        ("recipe.section_unknown", "--set learning_rate", NOTHING),
    ]
    assert [problem.remedy for problem in found[2:]] == [
        "Did you mean learning_rate?",
        "Move it to [sft] or [dpo] or [grpo].",
    ]


def test_a_renamed_key_is_rejected_with_its_new_name(tmp_path: Path) -> None:
    tables = tables_of(recipe_model(TASKS))
    keys = {former: new for former, new in RENAMED.items() if new[0].isalpha() and " " not in new}
    for former, new in keys.items():
        (found,) = problems(write(tmp_path), f"{former}={{}}")
        assert (found.code, found.place) == ("recipe.key_unknown", f"--set {former}")
        assert found.remedy == f"Use {new} instead."
        *table, name = new.split(".")
        assert name in tables[tuple(table)]
        *table, name = former.split(".")
        assert name not in tables[tuple(table)]


def test_a_text_that_is_too_long_is_a_problem_with_its_limit(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path), f"run.name={'x' * 101}")
    assert (found.code, found.place) == ("recipe.text_too_long", "--set run.name")
    assert found.rule == "must have at most 100 characters"


def test_all_problems_are_reported_together_with_code_place_value_and_suggestion(tmp_path: Path) -> None:
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
    found = problems(write(tmp_path, text))
    assert facts(found) == [
        ("recipe.key_missing", "recipe.toml: run.name", NOTHING),
        ("recipe.key_unknown", "recipe.toml: run.nam", NOTHING),
        ("recipe.choice_unknown", "recipe.toml: model.precision", "5bit"),
        ("recipe.key_unknown", "recipe.toml: model.learning_rate", NOTHING),
        ("recipe.out_of_range", "recipe.toml: images.max_side", 8),
        ("recipe.out_of_range", "recipe.toml: grpo.generations", 1),
        ("recipe.wrong_type", "recipe.toml: grpo.micro_batch", 1.5),
        ("recipe.not_finite", "recipe.toml: grpo.temperature", float("inf")),
        ("recipe.key_unknown", "recipe.toml: grpo.num_generations", NOTHING),
        ("recipe.section_unknown", "recipe.toml: gpro", NOTHING),
        # [data] and [rewards] are right by themselves, so what must hold between them is reported too.
        ("recipe.no_training_fraction", "recipe.toml: data.split", 1.1),
        ("recipe.out_of_range", "recipe.toml: rewards.brevity", -1.0),
        ("recipe.reward_unknown", "recipe.toml: rewards.leter", NOTHING),
        ("recipe.custom_reward_malformed", "recipe.toml: rewards.custom", "polite"),
    ]
    remedies = {problem.place.removeprefix("recipe.toml: "): problem.remedy for problem in found}
    assert remedies["run.nam"] == "Did you mean name?"
    assert remedies["model.learning_rate"] == "Move it to [sft] or [dpo] or [grpo]."
    assert remedies["grpo.num_generations"] == "Use grpo.generations instead."
    assert remedies["gpro"] == "Did you mean grpo?"
    assert remedies["rewards.leter"] == "Did you mean letter?"
    assert str(found[4]) == "recipe.toml: images.max_side: must be at least 16 (got 8). Raise the value."
    assert {"letter", "explanation", "evidence", "format", "brevity", "polite"} <= set(
        found[12].rule.replace(",", "").replace("(", "").replace(")", "").split()
    )


CROSS: dict[str, tuple[str, tuple[str, ...], str, str, object]] = {
    "nothing to do": (SMALL.replace("[grpo]", ""), (), "nothing_to_do", "", NOTHING),
    "no rows": (SMALL.replace('train = "rows.json"', ""), (), "no_rows", "data", NOTHING),
    "rows and synthetic": (SMALL, ("data.synthetic.kind=chest",), "two_sources_of_rows", "data.train", "rows.json"),
    "synthetic of another task": (
        SMALL.replace('train = "rows.json"', ""),
        ("data.synthetic.kind=chest", "data.task=vqa"),
        "synthetic_task_mismatch",
        "data.task",
        "vqa",
    ),
    "no validation": (
        SMALL,
        ("evaluate.split=validation",),
        "evaluated_split_missing",
        "evaluate.split",
        "validation",
    ),
    "validation without rows": (
        SMALL.replace('train = "rows.json"', ""),
        ("data.synthetic.kind=chest", "validation={}"),
        "validation_split_missing",
        "data.synthetic.validation",
        0,
    ),
    "validation without training": (
        SMALL.replace("[grpo]", "[evaluate]"),
        ("validation={}",),
        "validation_without_training",
        "validation",
        NOTHING,
    ),
    "loss of GRPO": (SMALL, ("validation.metric=loss",), "validation_metric", "validation.metric", "loss"),
    "minimum without patience": (
        SMALL,
        ("validation.min_improvement=0.1",),
        "min_improvement_unused",
        "validation.min_improvement",
        NOTHING,
    ),
    "validation between log lines": (
        SMALL,
        ("validation.every_steps=15", "run.log_steps=10"),
        "validation_not_logged",
        "validation.every_steps",
        15,
    ),
    "two warmups": (
        SMALL,
        ("grpo.warmup_steps=3", "grpo.warmup_fraction=0.03"),
        "two_warmups",
        "grpo.warmup_fraction",
        0.03,
    ),
    "learning rate of a frozen tower": (
        SMALL,
        ("grpo.vision_learning_rate=1e-5",),
        "learning_rate_unused",
        "grpo.vision_learning_rate",
        1e-5,
    ),
    "rslora without an adapter": (
        SMALL,
        ("model.tuning=full", "lora.rslora=true"),
        "lora_variant_unused",
        "lora.rslora",
        True,
    ),
    "dora with vLLM": (SMALL, ("lora.dora=true", "grpo.rollouts=vllm"), "dora_with_vllm", "lora.dora", True),
    "every weight 0": (
        SMALL,
        tuple(f"rewards.{name}=0" for name in TASKS["mcq"].reward_weights),
        "rewards_all_zero",
        "rewards",
        NOTHING,
    ),
    "infinite weight": (SMALL, ("rewards.letter=inf",), "not_finite", "rewards.letter", float("inf")),
    "full in 4 bits": (
        SMALL,
        ("model.tuning=full", "model.precision=4bit"),
        "full_tuning_of_quantized",
        "model.precision",
        "4bit",
    ),
    "full from an adapter": (
        SMALL,
        ("model.tuning=full", "model.adapter=/a"),
        "full_tuning_with_adapter",
        "model.adapter",
        "/a",
    ),
    "no layer": (SMALL, ("lora.targets=[]",), "no_layer_to_train", "lora.targets", []),
    "revision of tiny": (SMALL, ("model.revision=main",), "revision_without_hub", "model.revision", "main"),
    "no model": (SMALL, ("model.name=a/b/c",), "model_name_malformed", "model.name", "a/b/c"),
    "nothing to export": (SMALL.replace("[grpo]", "[export]"), (), "nothing_to_export", "export", NOTHING),
    "export to nothing": (SMALL, ("export.to=[]",), "list_empty", "export.to", []),
    "no tokens for the prompt": (
        SMALL,
        ("model.max_tokens=128",),
        "no_tokens_for_prompt",
        "grpo.max_completion_tokens",
        Grpo().max_completion_tokens,
    ),
    "epsilon": (SMALL, ("grpo.epsilon_high=0.1",), "epsilons_reversed", "grpo.epsilon_high", 0.1),
    "cispo": (SMALL, ("grpo.loss=cispo",), "cispo_cap_too_low", "grpo.epsilon_high", None),
    "micro batch": (SMALL, ("grpo.micro_batch=3",), "conflict", "grpo", NOTHING),
    "reward of that name": (
        SMALL,
        ('rewards.custom=["/a.py:letter"]',),
        "custom_reward_name_taken",
        "rewards.custom",
        "/a.py:letter",
    ),
    "one percentile": (SMALL, ("images.percentiles=[1]",), "key_missing", "images.percentiles.1", NOTHING),
    "no list": (SMALL, ("run.report_to=wandb",), "wrong_type", "run.report_to", "wandb"),
    "no table": (SMALL, ("images=3",), "wrong_type", "images", 3),
    "no section": (SMALL.replace("[run]", "[rum]"), (), "section_missing", "run", NOTHING),
}


@pytest.mark.parametrize("case", CROSS)
def test_each_broken_rule_between_keys_is_one_problem_with_code_and_key(case: str, tmp_path: Path) -> None:
    text, settings, code, key, value = CROSS[case]
    found = problems(write(tmp_path, text), *settings)
    assert len(found) == (2 if case == "no section" else 1), found  # that one also has the unknown section [rum]
    problem = found[0]
    assert problem.code == f"recipe.{code}"
    assert problem.place.removeprefix("--set ").removeprefix("recipe.toml").removeprefix(": ") == key
    assert problem.value == (str(tmp_path / "rows.json") if value == "rows.json" else value)


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
    assert recipe.dataset.train == str(tmp_path / "recipes" / "rows.json")
    assert recipe.dataset.test == str(tmp_path / "elsewhere" / "test.json")
    assert recipe.dataset.validation == "hub:owner/name#val"
    assert recipe.model.adapter == tmp_path / "old"
    assert recipe.model.name == str(tmp_path / "base")
    assert recipe.rewards.custom == (f"{tmp_path / 'recipes' / 'mine.py'}:polite",)
    assert recipe.reward_weights["polite"] == 1.0
    assert recipe.run_folder == Path("runs/small")
    assert load_recipe(path, ["data.train=~/rows.json"]).dataset.train == str(Path.home() / "rows.json")
    assert load_recipe(path, ["data.train=~nobody-here/a"]).dataset.train == str(tmp_path / "elsewhere/~nobody-here/a")


def test_missing_files_are_all_reported_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + '[rewards]\ncustom = ["mine.py:polite"]\n[model]\nadapter = "old"\n')
    load_recipe(path)
    assert facts(problems(path, files=True)) == [
        ("recipe.rows_missing", "recipe.toml: data.train", str(tmp_path / "rows.json")),
        ("recipe.adapter_missing", "recipe.toml: model.adapter", str(tmp_path / "old")),
        ("recipe.file_missing", "recipe.toml: rewards.custom", str(tmp_path / "mine.py")),
    ]


def test_a_syntax_error_names_the_line_and_shows_it(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, '[run]\nname = "a"\nlearning_rate 5\n'))
    assert facts([found]) == [("recipe.not_toml", "recipe.toml, line 3, column 15", "learning_rate 5")]


def test_a_missing_recipe_is_reported_with_a_similar_file(tmp_path: Path) -> None:
    write(tmp_path, name="quickstart.toml")
    (found,) = problems(tmp_path / "quikstart.toml")
    assert (found.code, found.remedy) == ("recipe.not_found", f"Did you mean {tmp_path / 'quickstart.toml'}?")


def test_a_byte_order_mark_is_accepted_and_other_encodings_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe(path).run.name == "small"
    path.write_bytes(SMALL.encode("utf-16"))
    assert facts(problems(path)) == [("recipe.not_utf8", "recipe.toml", NOTHING)]


def test_changed_keys_name_old_and_new_and_sections_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path)
    old = load_recipe(path, ["evaluate.limit=5"])
    new = load_recipe(path, ["grpo.beta=0.1", "sft={}", "evaluate={}"])
    assert changed_keys(old, old) == {}
    assert changed_keys(old, new) == {"sft": ("off", "on"), "grpo.beta": (0.0, 0.1), "evaluate.limit": (5, None)}


def sections_in(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for info in section.model_fields.values():
        if inner := section_in(info.annotation):
            yield from sections_in(inner)


def test_every_section_and_every_key_has_a_description() -> None:
    without = [
        f"{section.__name__}.{name}"
        for section in sections_in(recipe_model(TASKS))
        for name, info in section.model_fields.items()
        if not info.description and section_in(info.annotation) is None
    ]
    assert without == []
    assert all(section.__doc__ for section in sections_in(recipe_model(TASKS)))


def test_a_loaded_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        recipe.run.seed = 1  # type: ignore[misc]


def test_the_tables_of_checks_and_hints_name_what_exists() -> None:
    assert {section for sections, _ in CHECKS for section in sections} <= set(Recipe.model_fields)
    tables = tables_of(recipe_model(TASKS))
    known = {key for keys in tables.values() for key in keys}
    assert not known & set(FOREIGN)
    assert tables["data", "split"] == ("validation", "test")
    assert tables["grpo",] == tuple(Grpo.model_fields)


@pytest.mark.parametrize(
    ("text", "code", "key", "value"),
    [
        (
            '[run]\nname = "r"\nlog_steps = 10\ncheckpoint_steps = 25\n',
            "recipe.log_steps_not_divisor",
            "run.log_steps",
            10,
        ),
        (
            '[run]\nname = "r"\n[images]\nunreadable = "skip"\nscan = "header"\n',
            "recipe.scan_finds_no_unreadable",
            "images.scan",
            "header",
        ),
        ('[run]\nname = "r"\n[data.lesion]\ngrid = 5\n', "recipe.key_of_other_task", "data.lesion", "mcq"),
    ],
)
def test_settings_that_would_hide_errors_are_rejected(
    tmp_path: Path, text: str, code: str, key: str, value: object
) -> None:
    file = tmp_path / "recipe.toml"
    # A sub-table of [data] must follow [data].
    file.write_text('[sft]\n[data]\ntask = "mcq"\ntrain = "rows.json"\n' + text)
    assert facts(problems(file)) == [(code, f"recipe.toml: {key}", value)]


def test_a_tracker_that_is_not_installed_is_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    file = tmp_path / "r.toml"
    file.write_text(
        '[run]\nname = "r"\nreport_to = ["wandb"]\n[sft]\n[data]\ntask = "mcq"\n[data.synthetic]\nkind = "chest"\n'
    )
    with raises(RecipeError, "recipe.tracker_not_installed") as caught:
        load_recipe(file, files=True)
    assert (caught.problem.place, caught.problem.value) == (f"{file}: run.report_to", "wandb")
    load_recipe(file)


def test_a_recipe_needs_data_or_image_generation(tmp_path: Path) -> None:
    for model in (Recipe, recipe_model(TASKS)):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({"run": {"name": "r"}, "sft": {}})
        assert [error["type"] for error in caught.value.errors()] == ["data_missing"]
    with raises(RecipeError, "recipe.section_missing") as found:
        load_recipe(write(tmp_path, '[run]\nname = "r"\n[sft]\n'))
    assert found.problem.place.endswith(": data")
    generator = load_recipe(RECIPES[0].parent / "imagegen_tiny.toml")
    assert generator.data is None
    with raises(RecipeError, "recipe.section_missing"):
        _ = generator.dataset


def test_every_recipe_is_the_same_in_another_process() -> None:
    for file in RECIPES:
        recipe = load_recipe(file)
        again = pickle.loads(pickle.dumps(recipe))
        assert again == recipe
        assert dump_recipe(again) == dump_recipe(recipe)


def test_balanced_sampling_needs_a_task_with_classes(tmp_path: Path) -> None:
    text = '[run]\nname = "r"\n[data]\ntask = "{}"\ntrain = "rows.json"\nsampling = "balanced"\n[sft]\n'
    with raises(RecipeError, "recipe.sampling_needs_classes") as caught:
        load_recipe(write(tmp_path, text.format("mcq")))
    assert caught.problem.value == "balanced"
    assert load_recipe(write(tmp_path, text.format("lesion"))).dataset.sampling == "balanced"


DEEP: dict[str, str] = {
    "list": "context = " + "[" * 300 + "]" * 300,
    "longer list": "context = " + "[" * 600 + "]" * 600,
    "open list": "context = " + "[" * 2000,
    "table": "context = " + "{a = " * 300 + "1" + "}" * 300,
    "dotted key": ".".join("a" * 500) + " = 1",
    "dotted key of many parts": ".".join("a" * 100_000) + " = 1",
    "quoted key": ".".join(['"a b"'] * 100_000) + " = 1",
    "header": f"[{' . '.join('a' * 500)}]",
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_nesting_is_one_problem_in_a_file_and_in_set(case: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{SMALL}[prompt]\n{DEEP[case]}\n")
    (found,) = problems(path)
    assert found.code == "recipe.nested_too_deep"
    assert found.place.startswith("recipe.toml")
    if "=" in DEEP[case]:
        (found,) = problems(write(tmp_path), DEEP[case].replace(" = ", "=", 1))
        assert found.code == "recipe.nested_too_deep"
        assert found.place.startswith("--set ")


@pytest.mark.parametrize("number", ["9" * 4301, "9" * 4000, "9223372036854775808", f"0x{'f' * 5000}"])
def test_an_integer_beyond_64_bits_is_a_problem_in_a_file_and_in_set(number: str, tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, f"{SMALL}max_steps = {number}\n"))
    assert found.code == "recipe.integer_too_large"
    (found,) = problems(write(tmp_path), f"grpo.max_steps={number}")
    assert (found.code, found.place) == ("recipe.integer_too_large", "--set grpo.max_steps")


def test_a_recipe_that_is_too_large_is_a_problem(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, f"{SMALL}#{'x' * 1_000_000}"))
    assert (found.code, found.place) == ("recipe.too_large", "recipe.toml")


PATHS = {
    "run.folder": "{}",
    "data.train": "{}",
    "data.image_root": "{}",
    "data.task": "{}.py:TASK",
    "model.name": "./{}",
    "model.adapter": "{}",
    "rewards.custom": '["{}.py:polite"]',
}


@pytest.mark.parametrize("key", PATHS)
def test_a_path_that_no_file_system_allows_is_a_problem_at_its_key(key: str, tmp_path: Path) -> None:
    quote = "{}" if PATHS[key].startswith("[") else '"{}"'
    cases = {"a\\u0000b": "text_invalid", "x" * 300: "path_too_long", "x/" * 2500: "path_too_long"}
    for text, code in cases.items():
        (found,) = problems(write(tmp_path), f"{key}={quote.format(PATHS[key].format(text))}", files=True)
        assert (found.code, found.place) == (f"recipe.{code}", f"--set {key}")


def test_bytes_of_the_command_line_that_are_not_utf8_are_a_problem(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path), "run.name=\udcff")
    assert (found.code, found.place) == ("recipe.text_invalid", "--set run.name")


EXTREME = (
    "data.synthetic.train=1000000000000",
    "evaluate.batch_size=1000000000",
    "evaluate.bootstrap=100000000",
    "grpo.beta=1e300",
    "grpo.epsilon=1e300",
    "grpo.epsilon_high=1e300",
    "grpo.learning_rate=1e300",
    "grpo.temperature=1e-30",
    "grpo.temperature=1e300",
    "lora.r=10000000",
    "sft.accumulation=1000000000000",
    "sft.batch_size=1000000000",
    "sft.epochs=1e300",
    "sft.weight_decay=1e300",
)


@pytest.mark.parametrize("setting", EXTREME)
def test_a_number_that_no_run_can_use_is_out_of_range(setting: str, tmp_path: Path) -> None:
    synthetic = ["data.synthetic.kind=chest"] if "synthetic" in setting else []
    found = problems(write(tmp_path), *synthetic, setting)
    assert ("recipe.out_of_range", f"--set {setting.partition('=')[0]}") in [(one.code, one.place) for one in found]


def numbers(kind: Any, bounds: Sequence[Any] = (), path: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the path of every number in an annotation, and the bounds that pydantic checks."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from numbers(field.annotation, field.metadata, f"{path}.{name}".removeprefix("."))
    elif kind in (int, float):
        yield path, bounds
    elif hasattr(kind, "__metadata__"):
        more = [bound for one in kind.__metadata__ for bound in getattr(one, "metadata", [one])]
        yield from numbers(kind.__origin__, [*bounds, *more], path)
    elif get_origin(kind) is not Literal:
        for inner in get_args(kind):
            yield from numbers(inner, bounds, path)


UNBOUNDED = {"data.filter"}
"""Keys whose numbers are only compared with cells."""


def test_every_number_of_a_recipe_has_a_lower_and_an_upper_bound() -> None:
    found = list(numbers(recipe_model(TASKS)))
    assert len(found) > 100
    kinds = ((Ge, Gt), (Le, Lt))
    without = {key for key, bounds in found if not all(any(isinstance(one, kind) for one in bounds) for kind in kinds)}
    assert without == UNBOUNDED


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308", "-1e308", "9223372036854775807", "-1"])
def test_a_number_outside_its_bounds_is_rejected(tmp_path: Path, value: str) -> None:
    keys = {key for key, _ in numbers(recipe_model(TASKS)) if not key.startswith("imagegen.")} - UNBOUNDED
    found = problems(write(tmp_path), *(f"{key}={value}" for key in sorted(keys)))
    assert {f"--set {key}" for key in keys} <= {problem.place for problem in found}
    (reward,) = problems(write(tmp_path), f"rewards.letter={value}")
    assert (reward.place, reward.code) in [
        ("--set rewards.letter", code) for code in ("recipe.out_of_range", "recipe.not_finite")
    ]
