"""The README against the code: commands, options, keys, recipes, files, and the worked example of a reward."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from toolkit.cli import show
from toolkit.cli.commands import app
from toolkit.errors import RecipeError
from toolkit.recipe import REWARD_WEIGHTS, Recipe, load_recipe
from toolkit.recipe.problems import TABLES
from toolkit.stages.reward_test import score_file
from toolkit.tasks.loading import load_data

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

Block = tuple[str, str, str]
"""The comment in the line before (or empty), the language, and the text of a fenced block."""


def fenced() -> list[Block]:
    found = re.findall(r"(?:^<!-- ([^>]*) -->\n)?^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [(name, language, text) for name, language, text in found]


def marked(name: str) -> str:
    (text,) = (text for comment, _, text in fenced() if comment == name)
    return text


def prose() -> str:
    return re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)


def spans() -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", prose())


def shell_lines() -> list[list[str]]:
    """Words of every command in shell blocks, indented lines and inline code; comments are left out."""
    blocks = [line for _, language, text in fenced() if language == "bash" for line in text.splitlines()]
    indented = re.findall(r"^    (.*)$", prose(), re.MULTILINE)
    commands = [part for line in [*blocks, *indented, *spans()] for part in line.split("&&")]
    return [words for line in commands if (words := _words(line))]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # inline code that is no command, such as an apostrophe
        return []


COMMANDS: dict[tuple[str, ...], click.Command] = {}


def _collect(command: Any, path: tuple[str, ...] = ()) -> None:
    COMMANDS[path] = command
    for name, inner in getattr(command, "commands", {}).items():
        _collect(inner, (*path, name))


_collect(typer.main.get_command(app))
LEAVES = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]


def options_of(command: click.Command) -> set[str]:
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
    return own | {"-h", "--help"}


def command_of(words: list[str]) -> tuple[str, ...]:
    """The longest path of a command that these words begin with; fails where there is none."""
    path: tuple[str, ...] = ()
    for word in words:
        if (*path, word) not in COMMANDS:
            break
        path = (*path, word)
    return path


def toolkit_lines() -> Iterator[list[str]]:
    yield from (words[1:] for words in shell_lines() if words[0] == "toolkit" and len(words) > 1)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_an_example(path: tuple[str, ...]) -> None:
    assert path in {command_of(words) for words in toolkit_lines()}


def test_every_command_and_option_that_is_named_exists() -> None:
    wrong = []
    for words in toolkit_lines():
        path = command_of(words)
        known = options_of(COMMANDS[path])
        bad = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
        if bad or (not path and words[0] not in (*known, "COMMAND")):
            wrong.append(" ".join(words))
    assert wrong == []


def test_every_option_that_stands_alone_is_one_of_some_command() -> None:
    known = {option for command in COMMANDS.values() for option in options_of(command)}
    assert {span.split()[0] for span in spans() if span.startswith("-")} <= known


def test_options_of_scripts_exist() -> None:
    for words in shell_lines():
        if words[0] != "python":
            continue
        file = ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])
        for word in words:
            if word.startswith("--"):
                assert f'"{word}"' in file.read_text(encoding="utf-8"), (file, word)


def test_every_key_that_is_named_is_one_of_a_recipe() -> None:
    keys = {".".join((*path, key)) for path, names in TABLES.items() for key in names}
    sections = {path[0] for path in TABLES if len(path) == 1}
    named = {
        match[0]
        for span in [*spans(), *(word for words in toolkit_lines() for word in words)]
        if (match := re.match(r"(\w+)\.\w+(?:\.\w+)*(?=$| ?=)", span)) and match[1] in sections
    }
    assert len(named) > 10
    assert named - keys == set()


def load_block(text: str, folder: Path, task: str) -> Recipe:
    """A whole recipe, or a part of one with what it lacks put in."""
    table = tomllib.loads(text)
    lacking = {"run": {"name": "readme"}, "data": {"task": task, "train": "x.json"}, "evaluate": {}}
    whole = "run" in table
    more = "" if whole else "".join(_toml(name, keys) for name, keys in lacking.items() if name not in table)
    (folder / "block.toml").write_text(text + more, encoding="utf-8")
    return load_recipe(folder / "block.toml")


def _toml(name: str, keys: dict[str, str]) -> str:
    return f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


TOML = [text for _, language, text in fenced() if language == "toml"]


@pytest.mark.parametrize("text", TOML, ids=lambda text: text.split("\n", 1)[0])
def test_every_recipe_loads(text: str, tmp_path: Path) -> None:
    problems = []
    for task in REWARD_WEIGHTS:
        try:
            load_block(text, tmp_path, task)
        except RecipeError as error:
            problems.append(str(error))
        else:
            return
    pytest.fail("\n".join(problems))


def test_the_explained_recipe_has_every_section(tmp_path: Path) -> None:
    tables = tomllib.loads(max(TOML, key=len))
    # [imagegen] rejects most other sections, so it has an example of its own.
    assert list(tables) == [name for name in Recipe.model_fields if name != "imagegen"]
    assert any("imagegen" in tomllib.loads(text) for text in TOML)
    for section in Recipe.model_fields:
        assert f"`[{section}]`" in README


def test_every_shipped_recipe_is_named() -> None:
    for file in (ROOT / "recipes").glob("*.toml"):
        assert f"`recipes/{file.name}`" in README


def test_reward_weights_are_those_of_the_code() -> None:
    table = README[README.index("| task | reward | weight |") :]
    rows = re.findall(r"^\| *(\w*) *\| `(\w+)` \| ([\d.]+) \|", table, re.MULTILINE)
    found: dict[str, dict[str, float]] = {}
    for task, name, weight in rows:
        found.setdefault(task or list(found)[-1], {})[name] = float(weight)
    assert found == REWARD_WEIGHTS


def test_the_worked_example_of_a_reward_prints_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("my_rewards.py", "my.toml", "completions.jsonl"):
        (tmp_path / name).write_text(marked(f"file: {name}"), encoding="utf-8")
    show.scored(score_file(load_recipe(tmp_path / "my.toml"), tmp_path / "completions.jsonl"))
    assert capsys.readouterr().out.startswith(marked("output: reward test"))


def test_the_rows_that_are_shown_can_be_read(tmp_path: Path) -> None:
    (text,) = (text for comment, language, text in fenced() if language == "json" and not comment)
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    recipe = '[run]\nname = "one"\n[data]\ntask = "mcq"\ntrain = "rows.json"\nsplit = { test = 0 }\n[sft]\n'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    data = load_data(load_recipe(tmp_path / "recipe.toml"))
    assert [(sample.id, sample.reference["letter"]) for sample in data.train] == [("case-1", "B")]


def tree() -> dict[str, str]:
    """Path -> description, from indentation by two."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in marked("tree").splitlines():
        name, _, what = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name.rstrip("/")]
        found["/".join(parents)] = what.strip()
    return found


def test_what_the_tree_names_is_there() -> None:
    assert [path for path in tree() if not list(ROOT.glob(path))] == []


def test_the_tree_names_every_module_with_a_description() -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "toolkit").rglob("*.py")}
    named = {path for path, what in tree().items() if what}
    assert modules - named == set()


def test_every_benchmark_is_named() -> None:
    for file in (ROOT / "tests" / "benchmarks").glob("bench_*.py"):
        assert f"`python tests/benchmarks/{file.name}`" in README


def test_files_that_the_text_names_are_there() -> None:
    starts = ("toolkit/", "tests/", "recipes/", ".ci/")
    named = {span for span in spans() if span.startswith(starts) and " " not in span and "NAME" not in span}
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_links_within_the_page_lead_somewhere() -> None:
    titles = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in _titles()}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= titles


def _titles() -> list[str]:
    return re.findall(r"^#+ (.*)$", prose(), re.MULTILINE)
