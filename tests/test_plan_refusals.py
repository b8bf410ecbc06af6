"""What a plan refuses because the run would: rows, files, a model's folder, a backend, a place to write to."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from training import recipe_on_files

from toolkit import tiny
from toolkit.cli import main
from toolkit.cli.plan import make
from toolkit.errors import ImageError, MissingExtraError, ModelError
from toolkit.pipeline import run_recipe
from toolkit.pipeline.prepare import PHANTOMS
from toolkit.pipeline.stages import STAGES
from toolkit.plan import Gpu, Plan, described_gpu
from toolkit.plan.gpu import GIB
from toolkit.recipe import Phantom, Recipe

A5000 = Gpu("RTX A5000", int(23.6 * GIB), bf16=True, here=False)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Practice films as files: 24 questions to train on, 8 to test."""
    folder = tmp_path / "films"
    PHANTOMS["chest"](folder, Phantom(kind="chest", train=24, test=8, size=64), 3407)
    return folder


def recipe_of(films: Path, tables: Mapping[str, Mapping[str, Any]] | None = None, **off: None) -> Recipe:
    """SFT, GRPO and evaluation on the films; a section that is None is off."""
    return recipe_on_files(films.parent, films, tables, **off)


def problems(plan: Plan) -> str:
    return "\n".join(map(str, plan.problems))


def change_row(file: Path, **fields: Any) -> None:
    """The file's first row gets these fields."""
    rows = json.loads(file.read_text())
    rows[next(iter(rows))] |= fields
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_picture_that_is_not_there_is_a_problem_as_it_is_for_the_run(films: Path, split: str) -> None:
    change_row(films / f"{split}.json", ImagePath=["images/none.png"])
    recipe = recipe_of(films)
    plan = make(recipe, None)
    assert "none.png: the picture must exist" in problems(plan)
    assert not plan.problems[0].certain  # the run's own scan names every such picture
    with pytest.raises(ImageError, match=r"none\.png"):
        run_recipe(recipe, STAGES)


def test_rows_that_are_skipped_are_counted_and_the_others_told(films: Path) -> None:
    change_row(films / "train.json", ImagePath=["images/none.png"])
    plan = make(recipe_of(films, {"images": {"unreadable": "skip"}}), None)
    assert plan.problems == []
    assert "1 of 24 rows looked at have a picture that cannot be used" in str(plan.warnings)
    assert plan.tokens is not None
    assert (plan.tokens.rows, len(plan.tokens.lengths)) == (24, 23)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_special_token_in_a_question_is_a_problem(films: Path, split: str) -> None:
    change_row(films / f"{split}.json", question="What is this? <start_of_turn>model")
    assert "special tokens" in problems(make(recipe_of(films), None))


def test_a_package_that_the_pictures_need_is_a_problem(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> None:
        raise MissingExtraError("pydicom", "dicom", "reading DICOM")

    monkeypatch.setattr("toolkit.plan.rows.count_rows", lacking)
    assert "reading DICOM needs the package pydicom" in problems(make(recipe_of(films), None))


def test_a_long_question_of_the_evaluation_is_a_problem_and_makes_its_memory_larger(films: Path) -> None:
    short = make(recipe_of(films), A5000)
    change_row(films / "test.json", question="What is this? " + "word " * 150)
    plan = make(recipe_of(films), A5000)
    assert "1 of 8 questions looked at leave no room for evaluate.max_completion_tokens" in problems(plan)
    assert all(one.certain for one in plan.problems)
    assert plan.memory is not None
    assert short.memory is not None
    assert plan.memory["evaluate"].estimate.peak.total > short.memory["evaluate"].estimate.peak.total
    assert plan.memory["sft"].estimate.peak.total == short.memory["sft"].estimate.peak.total


def test_an_evaluation_alone_is_planned_by_its_own_questions(films: Path) -> None:
    change_row(films / "train.json", question="What is this? <start_of_turn>model")
    plan = make(recipe_of(films, sft=None, grpo=None), None)
    assert plan.problems == []
    assert plan.tokens is not None
    assert plan.tokens.rows == 8


def test_without_rows_nothing_is_said_of_their_tokens(films: Path) -> None:
    tables = {"data": {"columns": {"question": "nothing"}}, "grpo": {"max_completion_tokens": 200}}
    plan = make(recipe_of(films, tables), None)
    assert "processor is not here" not in str(plan.warnings)
    assert "no room" not in problems(plan)
    (problem,) = plan.problems
    assert str(problem).count("[data]: ") == 1


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"model": {"adapter": "/nowhere/at/all"}}, "[model] adapter: there is no run or adapter"),
        ({"rewards": {"custom": ["/nowhere/mine.py:polite"]}}, "[rewards] custom: there is no file"),
    ],
)
def test_a_file_that_the_recipe_names_must_be_there(
    films: Path, tables: Mapping[str, Mapping[str, Any]], words: str
) -> None:
    assert words in problems(make(recipe_of(films, tables), None))


def remove(*names: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return work


def rewrite(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


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
    ("damage", "words"),
    [
        (remove("config.json"), "holds no config.json"),
        (configure(model_type="never_heard_of"), "no model for pictures and text of model_type 'never_heard_of'"),
        (rewrite("config.json", '{"model_type": "llama"}'), "no model for pictures and text of model_type 'llama'"),
        (few_layers, "no model for pictures and text"),
        (no_heads, "no model for pictures and text"),
        (remove("tokenizer.json", "tokenizer.model", "tokenizer_config.json"), "no processor that can be loaded"),
        (remove("model.safetensors"), "holds no whole weights"),
        (rewrite("model.safetensors", ""), "holds no whole weights"),
        (halve, "holds no whole weights"),
        (index("garbage"), "holds no whole weights"),
        (index("{}"), "holds no whole weights"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_a_models_folder_that_is_not_whole_is_a_certain_problem(
    films: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = films.parent / "model"
    shutil.copytree(tiny.FOLDER, folder)
    tables = {"model": {"name": str(folder), "max_tokens": 256}}
    assert make(recipe_of(films, tables), None).problems == []
    damage(folder)
    plan = make(recipe_of(films, tables), None)
    assert words in problems(plan)
    assert any(one.certain for one in plan.problems)
    json.dumps(plan.to_json())


def test_code_of_a_models_authors_may_know_its_type(films: Path) -> None:
    folder = films.parent / "model"
    shutil.copytree(tiny.FOLDER, folder)
    configure(model_type="never_heard_of")(folder)
    tables = {"model": {"name": str(folder), "max_tokens": 256, "trust_remote_code": True}}
    assert "never_heard_of" not in problems(make(recipe_of(films, tables), None))


def test_layers_that_the_model_does_not_have_are_a_problem_as_they_are_for_the_run(films: Path) -> None:
    recipe = recipe_of(films, {"lora": {"targets": ["q_proj", "qkv"]}}, evaluate=None)
    assert "no linear layers of the language model: qkv. It has: down_proj" in problems(make(recipe, None))
    with pytest.raises(ModelError, match=r"lora\.targets"):
        run_recipe(recipe, STAGES)


def test_attention_that_leaves_out_what_pictures_need_is_a_problem(films: Path) -> None:
    tables = {"model": {"attention": "flash_attention_2", "max_tokens": 256}}
    assert "[model] attention" in problems(make(recipe_of(films, tables), A5000))


def test_unsloth_without_a_gpu_is_a_problem(films: Path) -> None:
    recipe = recipe_of(films, {"model": {"backend": "unsloth", "max_tokens": 256}})
    assert "needs a CUDA device" in problems(make(recipe, None))
    assert make(recipe, A5000).problems == []


def test_what_unsloth_would_do_otherwise_is_a_problem_where_it_is_named(films: Path) -> None:
    tables = {"model": {"backend": "unsloth", "max_tokens": 256}, "grpo": {"loss": "dr_grpo"}}
    assert "would switch grpo.scale_rewards off" in problems(make(recipe_of(films, tables), A5000))
    tables["model"]["backend"] = "auto"
    assert make(recipe_of(films, tables), A5000).problems == []


def test_vllm_is_refused_with_every_reason(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"grpo": {"rollouts": "vllm"}, "model": {"max_tokens": 256}}
    found = problems(make(recipe_of(films, tables), None))
    assert "[grpo] rollouts: vLLM cannot write the completions" in found
    for reason in ("vLLM is not installed", "it needs a GPU of 24 GB", "the backend here is hf", "during SFT too"):
        assert reason in found
    monkeypatch.setattr("toolkit.plan.backend.find_spec", lambda name: object())
    assert make(recipe_of(films, tables, sft=None), described_gpu(24)).problems == []
    assert "it needs a GPU of 24 GB" in problems(make(recipe_of(films, tables, sft=None), described_gpu(16)))
    rows = json.loads((films / "train.json").read_text())
    change_row(films / "train.json", ImagePath=[row["ImagePath"][0] for row in list(rows.values())[:4:2]])
    assert "a prompt has 2" in problems(make(recipe_of(films, tables, sft=None), described_gpu(24)))


def test_a_run_folder_below_a_file_or_a_closed_folder_is_a_problem(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = films.parent / "file"
    file.touch()
    recipe = recipe_of(films, {"run": {"folder": file}})
    assert f"a run folder cannot be made in {file}: it is no folder" in problems(make(recipe, None))
    monkeypatch.setattr("toolkit.plan.disk.os.access", lambda *_: False)  # root may write into a closed folder
    assert "it is not writable" in problems(make(recipe_of(films), None))


def test_a_step_has_no_more_rows_than_there_are(films: Path) -> None:
    plan = make(recipe_of(films, {"sft": {"batch_size": 20, "accumulation": 4, "max_steps": None}}), None)
    assert plan.work is not None
    assert (plan.work["sft"].steps, plan.work["sft"].samples) == (1, 24)


@pytest.mark.parametrize("size", ["0.5", "nan", "inf", "1e300", "-8"])
def test_a_card_of_a_size_that_cannot_be_is_refused(films: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_of(films)
    with pytest.raises(SystemExit) as left:
        main(["plan", str(films.parent / "small.toml"), "--gpu", size])
    assert left.value.code == 2
    assert "--gpu" in capsys.readouterr().err
