"""README and docs/ against the code: commands, options, keys, recipes, files, links, and the example of a reward."""

import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from docs.generate import recipe_keys
from docs.generate.error_codes import entries
from tests.helpers.recipes import load_data, load_recipe
from toolkit.cli import tables as show
from toolkit.cli.commands import app
from toolkit.data import open_index
from toolkit.data.formats.conversations import CONVERSATIONS
from toolkit.data.formats.r2gen import R2GEN
from toolkit.data.formats.vqa_json import VQA_JSON
from toolkit.data.sample import Answer
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe, recipe_model
from toolkit.recipe.problems import tables_of
from toolkit.recipe.renamed import RENAMED
from toolkit.tasks import TASKS
from toolkit.training.completions_file import score_file

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

Block = tuple[str, str, str]
"""The comment in the line before (or empty), the language, and the text of a fenced block."""


def page(name: str) -> str:
    """Return the text of a page below docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(file.read_text(encoding="utf-8") for file in PAGES)


def fenced(text: str = TEXT) -> list[Block]:
    found = re.findall(r"(?:^<!-- ([^>]*) -->\n)?^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(name, language, block) for name, language, block in found]


def between(text: str, name: str) -> str:
    """Return what is between the comments NAME:begin and NAME:end."""
    return text.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]


def marked(text: str, name: str) -> str:
    """Return the fenced block after the comment NAME."""
    (found,) = (block for comment, _, block in fenced(text) if comment == name)
    return found


def prose(text: str = TEXT) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str = TEXT) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def shell_lines(text: str = TEXT) -> list[list[str]]:
    """Words of every command in shell blocks and inline code. Comments are left out."""
    blocks = [line for _, language, block in fenced(text) if language == "bash" for line in block.splitlines()]
    commands = [part for line in [*blocks, *spans(text)] for part in line.split("&&")]
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
    """Return the longest path of a command that these words begin with."""
    path: tuple[str, ...] = ()
    for word in words:
        if (*path, word) not in COMMANDS:
            break
        path = (*path, word)
    return path


def toolkit_lines(text: str = TEXT) -> Iterator[list[str]]:
    yield from (words[1:] for words in shell_lines(text) if words[0] == "toolkit" and len(words) > 1)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_an_example(path: tuple[str, ...]) -> None:
    examples = "\n".join(
        f"```bash\n{block}```" for _, language, block in fenced(page("reference/cli.md")) if language == "bash"
    )
    assert path in {command_of(words) for words in toolkit_lines(examples)}


def test_the_table_of_commands_names_every_command() -> None:
    table = re.findall(r"^\| `toolkit ([a-z0-9 ]+)` \|", page("reference/cli.md"), re.MULTILINE)
    assert sorted(table) == sorted(" ".join(path) for path in LEAVES)


def test_the_gate_runs_the_first_commands_of_the_readme() -> None:
    (first, *_) = (block for _, language, block in fenced(README) if language == "bash")
    gate = (
        (ROOT / ".ci" / "run")
        .read_text(encoding="utf-8")
        .replace("--quiet ", "")
        .replace('"$root/', "")
        .replace('"', "")
    )
    commands = [part.strip() for line in first.splitlines() for part in line.split("&&")]
    assert [command for command in commands if command not in gate] == []


def test_every_command_and_option_that_is_named_exists() -> None:
    wrong = []
    for words in toolkit_lines():
        path = command_of(words)
        known = options_of(COMMANDS[path])
        bad = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
        if bad or (not path and words[0] not in (*known, "COMMAND")):
            wrong.append(" ".join(words))
    assert wrong == []


def test_every_option_in_prose_belongs_to_a_command() -> None:
    known = {option for command in COMMANDS.values() for option in options_of(command)}
    named = {span.split()[0] for span in spans() if span.startswith("-")}
    assert named - known == named & RENAMED.keys()  # the changelog names old options


def test_options_of_scripts_exist() -> None:
    for words in shell_lines():
        if words[0] != "python":
            continue
        place = ROOT / (words[2].replace(".", "/") if words[1] == "-m" else words[1])
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        for word in words:
            if word.startswith("--"):
                assert f'"{word}"' in file.read_text(encoding="utf-8"), (file, word)


def test_every_key_that_is_named_is_one_of_a_recipe() -> None:
    tables = tables_of(recipe_model(TASKS))
    keys = {".".join((*path, key)) for path, names in tables.items() for key in names}
    sections = {path[0] for path in tables if len(path) == 1}
    named = {
        match[0]
        for span in [*spans(), *(word for words in toolkit_lines() for word in words)]
        if (match := re.match(r"(\w+)\.\w+(?:\.\w+)*(?=$| ?=)", span)) and match[1] in sections
    }
    assert len(named) > 10
    assert named - keys - entries().keys() <= RENAMED.keys()  # the changelog names former keys


def test_the_reference_has_every_key_of_a_recipe() -> None:
    parts = recipe_keys.text().replace(".NAME]", "]").split("\n## [")[1:]
    sections = dict(part.split("]\n", 1) for part in parts)
    for path, names in tables_of(recipe_model(TASKS)).items():
        missing = {name for name in names if f"- `{name}` (" not in sections.get(".".join(path), "")}
        assert {name for name in missing if ".".join((*path, name)) not in sections} == set(), path


def load_block(text: str, folder: Path, task: str) -> Recipe:
    """A whole recipe, or a part of one with what it lacks put in."""
    table = tomllib.loads(text)
    lacking = {"run": {"name": "readme"}, "data": {"task": task, "train": "x.json"}, "evaluate": {}}
    whole = "run" in table
    more = "" if whole else "".join(_toml(name, keys) for name, keys in lacking.items() if name not in table)
    for comment, _, block in fenced():
        if re.fullmatch(r"file: \w+\.py", comment):
            (folder / comment.removeprefix("file: ")).write_text(block, encoding="utf-8")
    (folder / "block.toml").write_text(text + more, encoding="utf-8")
    return load_recipe(folder / "block.toml")


def _toml(name: str, keys: dict[str, str]) -> str:
    return f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


TOML = [text for _, language, text in fenced() if language == "toml"]


@pytest.mark.parametrize("text", TOML, ids=lambda text: text.split("\n", 1)[0])
def test_every_recipe_loads(text: str, tmp_path: Path) -> None:
    problems = []
    for task in TASKS:
        try:
            load_block(text, tmp_path, task)
        except RecipeError as error:
            problems.append(str(error))
        else:
            return
    pytest.fail("\n".join(problems))


def test_the_explained_recipe_has_every_section() -> None:
    text = page("reference/recipe.md")
    (example,) = (block for _, language, block in fenced(text) if language == "toml")
    # [imagegen] rejects most other sections, so it has an example of its own.
    assert list(tomllib.loads(example)) == [name for name in Recipe.model_fields if name != "imagegen"]
    assert any("imagegen" in tomllib.loads(block) for block in TOML)
    for section in Recipe.model_fields:
        assert f"`[{section}]`" in text


def test_every_shipped_recipe_is_named() -> None:
    table = re.findall(r"^\| `(recipes/\w+\.toml)` \|", page("reference/recipes.md"), re.MULTILINE)
    assert sorted(table) == sorted(f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.toml"))


def test_reward_weights_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| *(\w*) *\| `(\w+)` \| ([\d.]+) \|", page("reference/rewards.md"), re.MULTILINE)
    found: dict[str, dict[str, float]] = {}
    for task, name, weight in rows:
        found.setdefault(task or list(found)[-1], {})[name] = float(weight)
    assert found == {name: task.reward_weights for name, task in TASKS.items()}


def test_the_scores_of_each_task_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| *(\w*) *\| `([\w.]+)` \|", page("reference/metrics.md"), re.MULTILINE)
    found: dict[str, list[str]] = {}
    for task, score in rows:
        found.setdefault(task or list(found)[-1], []).append(score)
    examples = {name: import_module(f"toolkit.tasks.{name}.rewards").EXAMPLE for name in TASKS}
    assert found == {name: list(task.scores(examples[name], Answer(""))) for name, task in TASKS.items()}
    assert all(scores[0] == TASKS[name].primary for name, scores in found.items())


def test_the_worked_example_of_a_reward_prints_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page("guides/custom_reward.md")
    for name in ("my_rewards.py", "my.toml", "completions.jsonl"):
        (tmp_path / name).write_text(marked(text, f"file: {name}"), encoding="utf-8")
    show.scored(score_file(load_recipe(tmp_path / "my.toml"), tmp_path / "completions.jsonl"))
    assert capsys.readouterr().out.startswith(marked(text, "output: reward test"))


def test_the_rows_that_are_shown_can_be_read(tmp_path: Path) -> None:
    blocks = [block for _, language, block in fenced(page("reference/data_formats.md")) if language == "json"]
    formats = set()
    for number, block in enumerate(blocks):
        content = json.loads(block)
        is_row = isinstance(content, dict) and not any(isinstance(one, dict) for one in content.values())
        is_file = is_row and {"train", "annotations"} & content.keys()
        source = tmp_path / f"{number}.json"
        source.write_text(block if is_file or not is_row else json.dumps([content]), encoding="utf-8")
        index = open_index(str(source))
        assert (len(index), index.skipped, index.metadata.noted) == (1, (), ()), block
        formats.add(index.metadata.format)
    assert {one.name for one in (VQA_JSON, R2GEN, *CONVERSATIONS)} <= formats


def test_the_row_of_multiple_choice_has_the_answer_that_it_shows(tmp_path: Path) -> None:
    text = page("reference/data_formats.md").partition("## mcq")[2]
    block = next(block for _, language, block in fenced(text) if language == "json")
    (tmp_path / "rows.json").write_text(block, encoding="utf-8")
    recipe = '[run]\nname = "one"\n[data]\ntask = "mcq"\ntrain = "rows.json"\nsplit = { test = 0 }\n[sft]\n'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    data = load_data(load_recipe(tmp_path / "recipe.toml"))
    assert [(sample.id, sample.reference["letter"]) for sample in data.train] == [("case-1", "B")]


def test_every_benchmark_is_named() -> None:
    for file in (ROOT / "tests" / "benchmarks").glob("bench_*.py"):
        assert f"`python tests/benchmarks/{file.name}`" in page("development/benchmarks.md")


def test_files_that_the_text_names_are_there() -> None:
    starts = ("toolkit/", "tests/", "recipes/", "docs/", ".ci/")
    named = {span for span in spans() if span.startswith(starts) and " " not in span and "NAME" not in span}
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst make them."""
    found: Counter[str] = Counter()
    anchors = set()
    for title in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return anchors


def broken_links(file: Path) -> list[str]:
    """Relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(file.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        if not target.is_file() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_resolve(file: Path) -> None:
    assert broken_links(file) == []


def test_a_link_to_a_missing_page_or_anchor_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# One\n\n## Two words\n\n## Two words\n", encoding="utf-8")
    file = tmp_path / "two.md"
    file.write_text(
        "[a](one.md#two-words-1) [b](one.md#three) [c](three.md) [d](#one) [e](https://a.b/c)", encoding="utf-8"
    )
    assert broken_links(file) == ["one.md#three", "three.md", "#one"]


def test_the_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", page("index.md")))
    assert linked == {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")} - {"index.md"}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_page_has_one_title(file: Path) -> None:
    assert len(re.findall(r"^# ", prose(file.read_text(encoding="utf-8")), re.MULTILINE)) == 1


def test_the_readme_has_at_most_200_lines_and_1500_words() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1500


def test_the_readmes_results_are_those_of_the_quickstart() -> None:
    printed = between(page("tutorials/quickstart.md"), "quickstart")
    rows = [line.strip("│|") for line in (*printed.splitlines(), *between(README, "results").splitlines())]
    cells = [[cell.strip() for cell in re.split("[│|]", row)] for row in rows if "%" in row and "intervals" not in row]
    shown = [[name, *figures] for name, n, *figures in cells[:4] if n == "1,000"]
    assert len(shown) == 4
    assert cells[4:] == shown
