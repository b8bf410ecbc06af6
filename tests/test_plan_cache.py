"""The cache of plans: a second plan of the same rows counts nothing, and a changed one counts again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.plans import write_xrays
from tests.helpers.training import recipe_on_files
from toolkit import tiny
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.planning import cache, tokens
from toolkit.planning import plan as planning
from toolkit.planning.tokens import Tokens
from toolkit.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="with a driver, torch is imported to find the GPU")


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xrays(tmp_path_factory.mktemp("xrays"), train=6, test=2)


def recipe_of(folder: Path, xrays: Path, tables: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    return recipe_on_files(folder, xrays, tables, evaluate=None)  # Evaluation rows are counted separately.


def model_at(folder: Path) -> Path:
    """Return a copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny.FOLDER, folder / "model"))


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of the real counting functions, in order."""
    found: list[str] = []
    for place, name in ((tokens, "_count"), (planning, "build_architecture")):
        real = getattr(place, name)

        def counted(*given: Any, name: str = name, real: Any = real) -> Any:
            found.append(name)
            return real(*given)

        monkeypatch.setattr(place, name, counted)
    return found


@pytest.mark.slow
@NO_GPU
def test_a_second_plan_imports_neither_torch_nor_transformers_and_is_equal(xrays: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    text = f'[run]\nname = "one"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n[model]\nmax_tokens = 300\n'
    file.write_text(f"{text}[images]\nmax_side = 112\n[sft]\n[evaluate]\n", encoding="utf-8")
    code = (
        "import sys, toolkit.cli\n"
        "try:\n    toolkit.cli.main(sys.argv[1:])\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "plan", str(file), "--json", "--set", f"run.folder={tmp_path}"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)
    )
    assert "transformers" in first.stderr.splitlines()[-1]
    assert second.stderr.splitlines()[-1] == "[]"
    one, two = (json.loads(done.stdout) for done in (first, second))
    for plan in (one, two):
        for name in ("free_gb", "downloads_free_gb"):
            plan["disk"].pop(name)
    assert one == two


def test_cached_counts_are_equal_to_computed_ones(xrays: Path, tmp_path: Path, counts: list[str]) -> None:
    recipe = recipe_of(tmp_path, xrays)
    first, second = make(recipe, None), make(recipe, None)
    assert counts == ["build_architecture", "_count"]
    assert (first.tokens, first.model.architecture) == (second.tokens, second.model.architecture)


def test_settings_that_do_not_affect_tokens_use_the_cache(xrays: Path, tmp_path: Path, counts: list[str]) -> None:
    make(recipe_of(tmp_path, xrays), None)
    plan = make(recipe_of(tmp_path, xrays, {"sft": {"batch_size": 2}, "lora": {"r": 4}}), None)
    assert counts == ["build_architecture", "_count"]
    assert plan.work is not None


@pytest.mark.parametrize(
    "tables",
    [
        {"prompt": {"instruction": "Answer with one letter and nothing else."}},
        {"prompt": {"system": "You read X-rays."}},
        {"images": {"max_side": 64}},
        {"model": {"max_tokens": 300}},
    ],
)
def test_another_prompt_image_or_limit_is_counted_again(
    tables: Mapping[str, Mapping[str, Any]], xrays: Path, tmp_path: Path, counts: list[str]
) -> None:
    make(recipe_of(tmp_path, xrays), None)
    plan = make(recipe_of(tmp_path, xrays, tables), None)
    assert counts == ["build_architecture", "_count", "_count"]
    cached_plan = make(recipe_of(tmp_path, xrays, tables), None)
    assert (plan.tokens, counts[3:]) == (cached_plan.tokens, [])


def test_another_image_in_the_same_file_is_counted_again(xrays: Path, tmp_path: Path, counts: list[str]) -> None:
    from PIL import Image

    own = Path(shutil.copytree(xrays, tmp_path / "xrays"))
    make(recipe_of(tmp_path, own), None)
    for file in own.rglob("*.png"):
        Image.new("L", (90, 60)).save(file)
    make(recipe_of(tmp_path, own), None)
    assert counts == ["build_architecture", "_count", "_count"]


def test_another_chat_template_or_configuration_is_counted_again(
    xrays: Path, tmp_path: Path, counts: list[str]
) -> None:
    model = model_at(tmp_path)
    recipe = recipe_of(tmp_path, xrays, {"model": {"name": str(model)}})
    first = make(recipe, None)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("+ (", "+ 'the ' + ("), "utf-8")
    second = make(recipe, None)
    assert first.tokens is not None
    assert second.tokens is not None
    assert second.tokens.longest.text > first.tokens.longest.text
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["intermediate_size"] *= 2
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    third = make(recipe, None)
    assert first.model.architecture is not None
    assert third.model.architecture is not None
    assert third.model.architecture.parameters > first.model.architecture.parameters
    assert counts == ["build_architecture", "_count", "_count", "build_architecture", "_count"]


def test_estimated_tokens_are_not_cached(xrays: Path, tmp_path: Path, counts: list[str]) -> None:
    model = model_at(tmp_path)
    for file in model.glob("*token*"):
        file.unlink()
    recipe = recipe_of(tmp_path, xrays, {"model": {"name": str(model)}})
    plan = make(recipe, None)
    assert plan.tokens is not None
    assert not plan.tokens.exact
    make(recipe, None)
    assert counts == ["build_architecture", "_count", "_count"]


def test_a_corrupt_or_read_only_cache_is_ignored(
    xrays: Path, tmp_path: Path, private_cache: Path, counts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, xrays)
    first = make(recipe, None)
    for file in (private_cache / "plans").iterdir():
        file.write_text('{"rows": "many"', encoding="utf-8")
    assert make(recipe, None).tokens == first.tokens
    assert counts == ["build_architecture", "_count"] * 2
    monkeypatch.setattr(cache, "cache_folder", lambda: recipe_file(tmp_path))
    assert make(recipe, None).tokens == first.tokens
    assert counts == ["build_architecture", "_count"] * 3


def recipe_file(folder: Path) -> Path:
    """The path of the cache folder is a file."""
    (folder / "file").write_text("", encoding="utf-8")
    return folder / "file"


def test_other_code_or_libraries_change_the_key(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> Tokens:
        return Tokens(1, (), 8, exact=True)

    for version in ("1", "1", "2"):
        cache._code.cache_clear()
        monkeypatch.setattr(cache, "version", lambda library, version=version: version)
        cache.cached_count(Tokens, ["the same"], count)
    cache._code.cache_clear()
    assert len(list((private_cache / "plans").iterdir())) == 2
    for name in cache.CODE:
        assert (Path(cache.__file__).parent.parent / name).is_file()


def test_a_name_with_a_lone_surrogate_is_not_cached(private_cache: Path) -> None:
    def count() -> Tokens:
        return Tokens(1, (), 8, exact=True, too_long=("X-ray \ud83d: 9",))

    assert cache.cached_count(Tokens, ["\ud83d"], count) == count()
    assert cache.cached_count(Tokens, ["\ud83d"], count) == count()
    assert not list(private_cache.rglob("*.json"))
