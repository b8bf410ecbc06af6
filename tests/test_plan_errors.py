"""Plans report what a run would reject: rows, files, model folders, backends and run folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.plans import write_xrays
from tests.helpers.problems import raises
from tests.helpers.training import Tables, recipe_on_files
from toolkit import tiny
from toolkit.cli import main
from toolkit.errors import DataError, ImageError, MissingExtraError, ModelError, Problem
from toolkit.models import backend_name
from toolkit.pipeline import run_recipe
from toolkit.pipeline.plan import plan_language_model as make
from toolkit.pipeline.stages import STAGES
from toolkit.planning import Gpu, Plan, described_gpu
from toolkit.planning.gpu import GIB
from toolkit.recipe import Recipe

A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True, here=False)


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    return write_xrays(tmp_path / "xrays", size=64)


def recipe_of(xrays: Path, tables: Tables | None = None, **off: None) -> Recipe:
    """Return a recipe with SFT, GRPO and evaluation. A section that is None is disabled."""
    return recipe_on_files(xrays.parent, xrays, tables, **off)


def codes(plan: Plan) -> list[str]:
    return [problem.code for problem in plan.problems]


def one_of(plan: Plan, code: str) -> Problem:
    """Return the only problem with this code."""
    (found,) = (problem.details for problem in plan.problems if problem.code == code)
    return found


def change_row(file: Path, **fields: Any) -> None:
    """Replace fields of the first row of the file."""
    rows = json.loads(file.read_text())
    rows[next(iter(rows))] |= fields
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_image_is_a_problem_as_in_a_run(xrays: Path, split: str) -> None:
    change_row(xrays / f"{split}.json", ImagePath=["images/none.png"])
    recipe = recipe_of(xrays)
    plan = make(recipe, None)
    (problem,) = plan.problems
    assert problem.place == f"{xrays}/{split}.json, row 0, image 1"
    assert not problem.certain  # The scan of the run reports every such image.
    with raises(ImageError, "images.unusable"):
        run_recipe(recipe, STAGES)


def test_skipped_rows_are_counted_and_the_others_are_planned(xrays: Path) -> None:
    change_row(xrays / "train.json", ImagePath=["images/none.png"])
    plan = make(recipe_of(xrays, {"images": {"unreadable": "skip"}}), None)
    assert plan.problems == []
    (warned,) = (one.details for one in plan.warnings if one.code == "plan.rows_skipped")
    assert "1 of 24" in warned.rule
    assert "train.json" in warned.place
    assert plan.tokens is not None
    assert (plan.tokens.rows, len(plan.tokens.lengths)) == (24, 23)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_special_token_in_a_prompt_is_a_problem(xrays: Path, split: str) -> None:
    change_row(xrays / f"{split}.json", question="What is this? <start_of_turn>model")
    recipe = recipe_of(xrays)
    found = [problem.details for problem in make(recipe, None).problems]
    with pytest.raises(DataError) as raised:
        run_recipe(recipe, STAGES)
    assert raised.value.problem.code in [problem.code for problem in found]
    assert any("<start_of_turn>" in str(problem) for problem in found)


def test_a_missing_package_for_the_images_is_a_problem(xrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise MissingExtraError("pydicom", "dicom", "reading DICOM")

    monkeypatch.setattr("toolkit.planning.examined_rows.count_rows", lacking)
    found = [problem.details for problem in make(recipe_of(xrays), None).problems]
    assert {(problem.code, problem.place) for problem in found} == {("install.extra_missing", "pydicom")}


def test_a_long_evaluation_prompt_is_a_problem_and_needs_more_memory(xrays: Path) -> None:
    short = make(recipe_of(xrays), A5000)
    change_row(xrays / "test.json", question="What is this? " + "word " * 150)
    plan = make(recipe_of(xrays), A5000)
    found = one_of(plan, "plan.evaluation_prompt_too_long")
    assert (found.place, found.value) == ("[model] max_tokens", 256)
    assert "1 of 8" in found.rule
    assert all(one.certain for one in plan.problems)
    assert plan.memory is not None
    assert short.memory is not None
    assert plan.memory["evaluate"].estimate.peak.total > short.memory["evaluate"].estimate.peak.total
    assert plan.memory["sft"].estimate.peak.total == short.memory["sft"].estimate.peak.total


def test_an_evaluation_alone_is_planned_with_its_own_prompts(xrays: Path) -> None:
    change_row(xrays / "train.json", question="What is this? <start_of_turn>model")
    plan = make(recipe_of(xrays, sft=None, grpo=None), None)
    assert plan.problems == []
    assert plan.tokens is not None
    assert plan.tokens.rows == 8


def test_without_rows_there_is_no_finding_about_tokens(xrays: Path) -> None:
    tables: Tables = {"data": {"columns": {"question": "nothing"}}, "grpo": {"max_completion_tokens": 200}}
    plan = make(recipe_of(xrays, tables), None)
    assert "plan.tokens_estimated" not in [one.code for one in plan.warnings]
    (problem,) = plan.problems
    assert not problem.code.startswith("plan.")  # The error comes from reading the rows.
    assert str(problem).count(f"{problem.place}: ") == 1


def test_custom_code_that_cannot_be_used_is_a_problem_before_the_first_stage(xrays: Path) -> None:
    code = xrays / "code.py"
    code.write_text("def one(samples):\n    return []\n", encoding="utf-8")
    entry = {"metrics": [f"{code}:one"]}
    plan = make(recipe_of(xrays, {"evaluate": entry, "rewards": {"custom": [f"{code}:other"]}}), None)
    assert set(codes(plan)) == {"evaluate.metric_signature_wrong", "rewards.function_missing"}
    code.write_text("def one(samples, answers):\n    return []\n\n\ndef other(sample, answer):\n    return 1.0\n")
    plan = make(recipe_of(xrays, {"evaluate": entry, "rewards": {"custom": [f"{code}:other"]}}), None)
    assert codes(plan) == []


@pytest.mark.parametrize(
    ("tables", "code", "place"),
    [
        ({"model": {"adapter": "/nowhere/at/all"}}, "recipe.adapter_missing", "[model] adapter"),
        ({"rewards": {"custom": ["/nowhere/mine.py:polite"]}}, "recipe.file_missing", "[rewards] custom"),
    ],
)
def test_files_that_the_recipe_names_must_exist(xrays: Path, tables: Tables, code: str, place: str) -> None:
    found = one_of(make(recipe_of(xrays, tables), None), code)
    assert found.place == place
    assert "/nowhere/" in str(found)


def remove(*names: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return work


def rewrite(name: str, text: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / name).write_text(text)

    return work


def configure(**fields: Any) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | fields))

    return work


def halve(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def index(text: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return work


def few_layers(folder: Path) -> None:
    known = json.loads((folder / "config.json").read_text())
    known["text_config"]["num_hidden_layers"] = "many"
    (folder / "config.json").write_text(json.dumps(known))


def no_heads(folder: Path) -> None:
    known = json.loads((folder / "config.json").read_text())
    known["text_config"]["num_attention_heads"] = 0
    (folder / "config.json").write_text(json.dumps(known))


@pytest.mark.parametrize(
    ("damage", "code", "value"),
    [
        (remove("config.json"), "plan.config_missing", ""),
        (configure(model_type="never_heard_of"), "plan.model_type_unsupported", "never_heard_of"),
        (rewrite("config.json", '{"model_type": "llama"}'), "plan.model_type_unsupported", "llama"),
        (few_layers, "plan.model_type_unsupported", "gemma3"),
        (no_heads, "plan.model_type_unsupported", "gemma3"),
        (remove("tokenizer.json", "tokenizer.model", "tokenizer_config.json"), "plan.processor_missing", ""),
        (remove("model.safetensors"), "plan.weights_incomplete", ""),
        (rewrite("model.safetensors", ""), "model.weights_damaged", ""),
        (halve, "model.weights_damaged", ""),
        (index("garbage"), "model.index_not_json", ""),
        (index("{}"), "model.weights_damaged", ""),
        (shutil.rmtree, "plan.model_folder_missing", ""),
    ],
)
def test_an_incomplete_model_folder_is_a_certain_problem(
    xrays: Path, damage: Callable[[Path], None], code: str, value: str
) -> None:
    folder = xrays.parent / "model"
    shutil.copytree(tiny.FOLDER, folder)
    tables: Tables = {"model": {"name": str(folder), "max_tokens": 256}}
    assert make(recipe_of(xrays, tables), None).problems == []
    damage(folder)
    plan = make(recipe_of(xrays, tables), None)
    found = one_of(plan, code)
    assert (found.place, found.value) == ("[model] name", value or str(folder))
    assert any(one.certain for one in plan.problems)
    json.dumps(plan.to_json())


def test_custom_model_code_may_support_an_unknown_type(xrays: Path) -> None:
    folder = xrays.parent / "model"
    shutil.copytree(tiny.FOLDER, folder)
    configure(model_type="never_heard_of")(folder)
    tables: Tables = {"model": {"name": str(folder), "max_tokens": 256, "trust_remote_code": True}}
    assert "plan.model_type_unsupported" not in codes(make(recipe_of(xrays, tables), None))


def test_lora_targets_that_the_model_lacks_are_a_problem_as_in_a_run(xrays: Path) -> None:
    recipe = recipe_of(xrays, {"lora": {"targets": ["q_proj", "qkv"]}}, evaluate=None)
    found = one_of(make(recipe, None), "model.lora_target_unknown")
    assert (found.place, found.value) == ("[lora] targets", ["qkv"])
    assert "down_proj" in found.remedy
    with raises(ModelError, "model.lora_target_unknown") as caught:
        run_recipe(recipe, STAGES)
    assert (caught.problem.place, caught.problem.value) == (found.place, found.value)


def test_attention_that_ignores_image_blocks_is_a_problem(xrays: Path) -> None:
    tables: Tables = {"model": {"attention": "flash_attention_2", "max_tokens": 256}}
    found = one_of(make(recipe_of(xrays, tables), A5000), "model.attention_ignores_image_blocks")
    assert (found.place, found.value) == ("[model] attention", "flash_attention_2")


def test_unsloth_without_a_gpu_is_a_problem(xrays: Path) -> None:
    recipe = recipe_of(xrays, {"model": {"backend": "unsloth", "max_tokens": 256}})
    (problem,) = make(recipe, None).problems
    with pytest.raises(ModelError) as raised:
        backend_name(recipe.model)
    assert problem.code == raised.value.code
    assert problem.place == (raised.value.place or "[model] backend")
    assert make(recipe, A5000).problems == []


def test_settings_that_unsloth_changes_are_a_problem_if_it_is_required(xrays: Path) -> None:
    tables: Tables = {"model": {"backend": "unsloth", "max_tokens": 256}, "grpo": {"loss": "dr_grpo"}}
    found = one_of(make(recipe_of(xrays, tables), A5000), "model.unsloth_cannot_train")
    assert found.place == "[model] backend"
    assert "grpo.scale_rewards" in found.rule
    automatic = {**tables, "model": {"backend": "auto", "max_tokens": 256}}
    assert make(recipe_of(xrays, automatic), A5000).problems == []


def test_vllm_is_rejected_with_every_reason(xrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: Tables = {"grpo": {"rollouts": "vllm"}, "model": {"max_tokens": 256}}
    found = one_of(make(recipe_of(xrays, tables), None), "training.vllm_unsupported")
    assert found.place == "[grpo] rollouts"
    reasons = found.rule.split("; ")
    for word in ("installed", "24 GB", "backend", "[sft]"):
        assert sum(word in reason for reason in reasons) == 1
    monkeypatch.setattr("toolkit.planning.machine_checks.find_spec", lambda name: object())
    assert make(recipe_of(xrays, tables, sft=None), described_gpu(24)).problems == []
    small = one_of(make(recipe_of(xrays, tables, sft=None), described_gpu(16)), "training.vllm_unsupported")
    assert "24 GB" in small.rule
    rows = json.loads((xrays / "train.json").read_text())
    change_row(xrays / "train.json", ImagePath=[row["ImagePath"][0] for row in list(rows.values())[:4:2]])
    several = one_of(make(recipe_of(xrays, tables, sft=None), described_gpu(24)), "training.vllm_unsupported")
    assert several.rule.split("; ")[0].endswith(" 2")
    assert len(several.rule.split("; ")) == 1


def test_a_run_folder_below_a_file_or_a_read_only_folder_is_a_problem(
    xrays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = xrays.parent / "file"
    file.touch()
    recipe = recipe_of(xrays, {"run": {"folder": file}})
    found = one_of(make(recipe, None), "plan.run_folder_below_file")
    assert (found.place, found.value) == ("[run] folder", str(file))
    monkeypatch.setattr("toolkit.planning.disk.os.access", lambda *_: False)  # root may write into read-only folders.
    assert one_of(make(recipe_of(xrays), None), "plan.run_folder_not_writable").place == "[run] folder"


def test_a_step_has_no_more_rows_than_the_split(xrays: Path) -> None:
    plan = make(recipe_of(xrays, {"sft": {"batch_size": 20, "accumulation": 4, "max_steps": None}}), None)
    assert plan.work is not None
    assert (plan.work["sft"].steps, plan.work["sft"].samples) == (1, 24)


@pytest.mark.parametrize("size", ["0.5", "nan", "inf", "1e300", "-8"])
def test_an_impossible_gpu_size_is_rejected(xrays: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(xrays)
    with pytest.raises(SystemExit) as left:
        main(["plan", str(xrays.parent / "small.toml"), "--gpu", size])
    assert left.value.code == 2
    assert "--gpu" in capsys.readouterr().err


def test_a_chat_template_that_fails_is_one_certain_problem(xrays: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FOLDER, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    problem = one_of(make(recipe_of(xrays, {"model": {"name": str(folder)}}), None), "model.chat_template_fails")
    assert (problem.place, problem.value) == (f"chat template of {folder}", "no")
