"""Evaluation, prediction and export on the tiny model, start weights of a run, and real data."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.helpers.exports import export_of, merged_of, verified
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe, make_recipe
from tests.helpers.training import Tables, context_of, small_recipe
from toolkit import tiny
from toolkit.errors import DataError, ImageError, Interrupted, ModelError, RunError
from toolkit.evaluation.answers import read_reply, score_answer
from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.evaluation_predictions import PARTIAL, PREDICTIONS, known_replies
from toolkit.evaluation.predict import predict
from toolkit.evaluation.results import EvaluationResult
from toolkit.evaluation.scores import CONFUSION
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.export import export
from toolkit.models.backend import Policy, Sampling
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import find_run, read_json, read_lines
from toolkit.training.grpo import train_grpo
from toolkit.training.sft import train_sft

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 24
"""Limit of completion tokens. A model that was trained for a few steps has not learned to stop."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run with SFT, and the evaluations before and after it."""
    folder = tmp_path_factory.mktemp("stages")
    tables: Tables = {
        "sft": {"max_steps": 8, "learning_rate": 5e-3},
        "lora": {"vision": True},
        "evaluate": {"max_completion_tokens": TOKENS},
    }
    recipe = small_recipe(folder, tables, name="trained").model_copy(update={"grpo": None})
    run_recipe(recipe, STAGES)
    return recipe


@pytest.fixture
def context(trained: Recipe) -> Iterator[Context]:
    with context_of(trained) as made:
        yield made


def predictions(context: Context, name: str) -> list[dict[str, Any]]:
    return read_lines(context.run.path / "stages" / f"evaluate-{name}" / PREDICTIONS)


def with_export(context: Context, to: Sequence[str] = ("adapter", "merged"), verify: int = 4) -> Context:
    section = {"to": list(to), "verify": verify}
    return replace(context, recipe=make_recipe({**context.recipe.model_dump(), "export": section}))


def with_evaluation(context: Context, **changes: Any) -> Context:
    section = context.recipe.evaluate.model_copy(update=changes)  # type: ignore[union-attr]
    return replace(context, recipe=context.recipe.model_copy(update={"evaluate": section}))


def answers_of(backend: HfBackend, policy: Policy, context: Context, count: int = 4) -> list[str]:
    prompts = Prompts.of(context.recipe, context.images)
    rows = [prompts.row(sample) for sample in context.data.test[:count]]
    return [group[0].text for group in backend.generate(policy, rows, Sampling(TOKENS))]


def answers_of_plain_transformers(model: Any, processor: Any, context: Context, count: int = 4) -> list[str]:
    """Generate with transformers alone, as any user of the folder."""
    prompts = Prompts.of(context.recipe, context.images)
    found = []
    for sample in context.data.test[:count]:
        row = prompts.row(sample)
        text = processor.apply_chat_template(row.messages, add_generation_prompt=True)
        inputs = processor(text=text, images=row.images, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
        found.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def test_an_evaluation_has_one_prediction_per_question(context: Context) -> None:
    lines = predictions(context, "sft")
    assert [line["id"] for line in lines] == [sample.id for sample in context.data.test]
    record = context.run.result("evaluate-sft", EvaluationResult)
    assert record.primary.value.n == record.summary.overall.n == 12
    assert record.predictions == "stages/evaluate-sft/predictions.jsonl"
    assert not list((context.run.path / "stages/evaluate-sft").glob(PARTIAL.format("*")))


@pytest.mark.parametrize("line", ["{", "[]", '{"completion": "a"}'])
def test_a_corrupt_line_of_earlier_predictions_is_an_error(context: Context, line: str) -> None:
    file = context.run.path / "stages/evaluate-sft/predictions.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{line}\n{text}", encoding="utf-8")
    try:
        with raises(RunError, "run.line_damaged") as caught:
            evaluate(context, "again", context.weights, ["sft"])
    finally:
        file.write_text(text, encoding="utf-8")
    assert caught.problem.place == f"{file}, line 1"


@pytest.mark.parametrize("content", ["", "[]", '{"scores": {"accuracy": [', '{"scores": {"accuracy": 1}}'])
def test_corrupt_answers_of_the_majority_baseline_are_written_again(context: Context, content: str) -> None:
    file = context.run.path / "stages/baseline/test.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(content, encoding="utf-8")
    evaluate(context, "again", context.weights, ["sft"])
    assert file.read_text(encoding="utf-8") == text


def test_an_interrupted_evaluation_resumes_without_repeating_questions(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    generate = HfBackend.generate

    def count(self: HfBackend, policy: Policy, rows: Sequence[Any], sampling: Sampling) -> Any:
        batches.append(len(rows))
        return generate(self, policy, rows, sampling)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(HfBackend, "generate", count)
    with pytest.raises(Interrupted, match="saved after 6 of 12 "):
        evaluate(replace(context, progress=stop), "halved", context.weights, [])
    (partial,) = context.run.stage_folder("evaluate-halved").glob(PARTIAL.format("*"))
    saved = {line["id"] for line in read_lines(partial)}
    with partial.open("a", encoding="utf-8") as file:
        for line in [one for one in predictions(context, "sft") if one["id"] not in saved][
            :2
        ]:  # a part of the next batch, and a torn line, as after a crash
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.write('{"id": "torn')
    with context_of(context.recipe.model_copy(update={"run": other_run(context)})) as again:
        shutil.copy(partial, again.run.stage_folder("evaluate-halved"))
        record = evaluate(again, "halved", context.weights, [])
        assert predictions(again, "halved") == predictions(context, "sft")
        assert batches == [6, 6]
        assert {path.name for path in again.run.stage_folder("evaluate-halved").iterdir()} == {PREDICTIONS, CONFUSION}
        shutil.copy(partial, again.run.stage_folder("evaluate-base"))
        evaluate(again, "base", None, [])
        assert batches == [6, 6, 6, 6]  # answers of other weights are not reused
        shutil.copy(partial, again.run.stage_folder("evaluate-split"))
        section = again.recipe.evaluation.model_copy(update={"split": "validation"})
        other = replace(again.data, validation=again.data.test)
        moved = replace(again, recipe=again.recipe.model_copy(update={"evaluate": section}), data=other)
        evaluate(moved, "split", again.weights, [])
    assert batches == [6] * 6  # nor are those of another split, although rows without ids have equal ids
    assert record.primary.value == context.run.result("evaluate-sft", EvaluationResult).primary.value


def other_run(context: Context) -> Any:
    """Return the context with a new stop request, as in another process."""
    return context.recipe.run.model_copy(update={"name": "again"})


def test_the_majority_baseline_is_deterministic(context: Context) -> None:
    before, after = (context.run.result(f"evaluate-{name}", EvaluationResult) for name in ("before", "sft"))
    assert before.primary.baseline == after.primary.baseline
    assert before.primary.baseline.n == 12
    assert set(after.primary.differences) == {"baseline", "before"}


def test_a_truncated_completion_is_wrong_and_is_counted(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = evaluate(with_evaluation(context, max_completion_tokens=1), "cut", context.weights, [])
    overall = record.summary.overall
    assert record.primary.value.value == 0
    assert record.primary.value.n == 12
    assert overall.truncated.value == overall.unreadable.value == 1
    (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "evaluate.completions_truncated")
    assert (warned.place, warned.value) == ("evaluate-cut", "12 of 12")


def test_an_unreadable_answer_counts_in_n(context: Context, tmp_path: Path) -> None:
    prompts = Prompts.of(context.recipe, context.images)
    samples = context.data.test[:3]
    written = [prompts.task.target(samples[0]), "I am not\u2028sure.", "<SOLUTION>\nA"]
    file = tmp_path / "answers.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": sample.id, "completion": text, "truncated": text.endswith("A")}, ensure_ascii=False)
            + "\n"
            for sample, text in zip(samples, written, strict=True)
        ),
        encoding="utf-8",
    )
    known, task = known_replies(file), prompts.task
    rows = [score_answer(task, sample, read_reply(task, sample, known[sample.id]), ()) for sample in samples]
    assert [row.scores["accuracy"] for row in rows] == [1, 0, 0]
    assert [row.problem is None for row in rows] == [True, False, False]
    assert [row.truncated for row in rows] == [False, False, True]


def test_results_by_question_type_add_up(context: Context) -> None:
    by = context.run.result("evaluate-sft", EvaluationResult).summary.by["question_type"]
    kinds = [sample.fields["question_type"] for sample in context.data.test]
    assert {kind: figures.n for kind, figures in by.items()} == {kind: kinds.count(kind) for kind in kinds}


def test_exported_weights_have_the_same_completions_in_plain_transformers(context: Context) -> None:
    backend = HfBackend()
    expected = answers_of(backend, backend.load(context.recipe, context.weights, trainable=False), context)
    result = export(with_export(context))
    folder = context.run.path / "stages/export"
    assert [verified(found).differing for found in result.formats.values()] == [0, 0]
    assert sorted(entry.name for entry in folder.iterdir()) == ["adapter", "merged"]
    merged = AutoModelForImageTextToText.from_pretrained(folder / "merged")
    assert answers_of_plain_transformers(merged, AutoProcessor.from_pretrained(folder / "merged"), context) == expected
    base = AutoModelForImageTextToText.from_pretrained(tiny.FOLDER, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    assert answers_of_plain_transformers(adapted, AutoProcessor.from_pretrained(tiny.FOLDER), context) == expected


def test_an_export_of_one_format_keeps_the_result_of_the_other(context: Context) -> None:
    context.run.mark_done("export", export(with_export(context, ["adapter"], verify=1)))
    result = export(with_export(context, ["merged"], verify=1))
    (context.run.path / "stages/export/done.json").unlink()
    assert result.requested == ("adapter", "merged")
    assert result.weights == "stages/sft/weights"
    assert [(context.run.path / found.folder).is_dir() for found in result.formats.values()] == [True, True]


def test_an_export_carries_the_base_models_own_files(context: Context, tmp_path: Path) -> None:
    export(with_export(context, verify=1))
    folder = context.run.path / "stages/export"
    AutoProcessor.from_pretrained(tiny.FOLDER).save_pretrained(tmp_path)
    for form in ("adapter", "merged"):
        for file in tmp_path.iterdir():  # eos_token is <eos>, and batches left no padding in tokenizer.json
            assert (folder / form / file.name).read_bytes() == file.read_bytes(), f"{form}/{file.name}"
    ours, base = (without_dtype(read_json(place / "config.json")) for place in (folder / "merged", tiny.FOLDER))
    assert ours == base
    ours, base = (read_json(place / "generation_config.json") for place in (folder / "merged", tiny.FOLDER))
    assert ours == base
    weights = [file.relative_to(folder / "merged").as_posix() for file in (folder / "merged").glob("*.safetensors")]
    assert weights == ["model.safetensors"]


def without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    """The weights were loaded in 32 bits, so the files must say so."""
    return {
        key: without_dtype(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "dtype"
    }


def test_an_export_stops_at_the_end_of_turn_even_if_the_base_does_not(context: Context, tmp_path: Path) -> None:
    shutil.copytree(tiny.FOLDER, tmp_path / "base")
    file = tmp_path / "base/generation_config.json"
    file.write_text(json.dumps({**read_json(file), "eos_token_id": 1}), encoding="utf-8")
    model = context.recipe.model.model_copy(update={"name": str(tmp_path / "base")})
    backend = HfBackend()
    policy = backend.load(context.recipe.model_copy(update={"model": model}), None, trainable=False)
    backend.save_merged(policy, tmp_path / "merged")
    # <eos> is 1, as the base says; <end_of_turn> is 5, where the chat template ends an answer.
    assert read_json(tmp_path / "merged/generation_config.json")["eos_token_id"] == [1, 5]


class Careless(HfBackend):
    """Writes merged weights that differ from the policy's."""

    def save_merged(self, policy: Policy, folder: Path) -> None:
        super().save_merged(policy, folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        name = next(name for name in weights if "language_model" in name and "layers.0.mlp.down_proj" in name)
        save_file({**weights, name: -weights[name]}, file, {"format": "pt"})


def test_an_export_with_other_completions_fails_and_is_kept_under_another_name(context: Context) -> None:
    chosen = with_export(context, ["merged"])
    folder = context.run.stage_folder("export")
    shutil.rmtree(folder)
    with raises(ModelError, "export.answers_differ") as caught:
        export(chosen, Careless())
    assert caught.problem.place == str(folder / "merged.differs")
    assert "of 4 differ" in str(caught.problem.value)
    assert [entry.name for entry in folder.iterdir()] == ["merged.differs"]
    export(chosen)
    assert [entry.name for entry in folder.iterdir()] == ["merged"]
    good = (folder / "merged/model.safetensors").read_bytes()
    with raises(ModelError, "export.answers_differ"):
        export(chosen, Careless())
    assert sorted(entry.name for entry in folder.iterdir()) == ["merged", "merged.differs"]
    assert (folder / "merged/model.safetensors").read_bytes() == good


def test_a_quantized_recipe_is_merged_into_the_stored_base(context: Context) -> None:
    """Merging into 4 bits would round the updates, so the base is loaded again in the 16 bits of its file."""
    model = context.recipe.model.model_copy(update={"precision": "4bit"})
    quantized = replace(context, recipe=context.recipe.model_copy(update={"model": model}))
    policy = HfBackend().load(quantized.recipe, context.weights, trainable=False, mergeable=True)
    assert policy.bits == 16
    assert merged_of(export(with_export(quantized, ["merged"], verify=12))).bits == 16
    saved = load_file(context.run.path / "stages/export/merged/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    # W + B A * alpha / r, in 32 bits and then rounded once; alpha / r is 8 / 4 in this recipe.
    base = load_file(tiny.FOLDER / "model.safetensors")
    adapter = load_file(context.weights / "adapter_model.safetensors")  # type: ignore[operator]
    name = next(name for name in base if "language_model" in name and "layers.1.mlp.up_proj" in name)
    down, up = (
        next(value for key, value in adapter.items() if "layers.1.mlp.up_proj" in key and f"lora_{part}" in key)
        for part in "AB"
    )
    expected = base[name].float() + 2 * up @ down
    assert torch.allclose(saved[name].float(), expected, atol=0, rtol=2**-7)
    assert not torch.equal(saved[name], base[name])


def test_a_run_that_trained_nothing_has_nothing_to_export(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context, raises(ModelError, "export.nothing_trained"):
        export(with_export(context))


@pytest.mark.parametrize("letters", [True, False])
def test_a_prediction_equals_that_of_the_evaluation(context: Context, trained: Recipe, letters: bool) -> None:
    for sample, line in list(zip(context.data.test, predictions(context, "sft"), strict=True))[:3]:
        options = [f"{name}. {text}" if letters else text for name, text in sample.fields["options"].items()]
        images = [ref.path for ref in sample.images]
        answer = predict(find_run(trained.run_folder), sample.fields["question"], images, options)
        assert (answer.text, answer.truncated) == (line["completion"], line["truncated"])


def test_a_broken_image_has_no_prediction_whatever_the_training_setting(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"images": {"unreadable": "placeholder"}})
    with context_of(recipe):
        pass
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match="--image, image 1: the file must be an image"):
        predict(find_run(recipe.run_folder), "What does the X-ray show?", [broken], ["Pneumonia", "Nothing"])


def test_gray_placeholders_are_counted_in_the_records_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = {"unreadable": "placeholder", "memory_cache_mb": 0, "disk_cache": False}
    recipe = small_recipe(tmp_path, {"images": images})
    with context_of(recipe) as context:
        for sample in context.data.test[:2]:
            sample.images[0].path.write_bytes(b"gone bad after the scan")
        record = evaluate(context, "before", None, [])
    assert record.images.placeholders >= 1
    warned = [problem for problem in warnings_in(caplog) if problem.code == "images.placeholders_used"]
    assert [problem.value for problem in warned] == [record.images.placeholders]


def test_a_multiple_choice_question_without_options_is_rejected(trained: Recipe, context: Context) -> None:
    xray = context.data.test[0].images[0].path
    run = find_run(trained.run_folder)
    with raises(DataError, "predict.too_few_options") as caught:
        predict(run, "What does the X-ray show?", [xray], ["A. Pneumonia"])
    assert (caught.problem.place, caught.problem.value) == ("--option", ["A. Pneumonia"])
    with raises(DataError, "predict.question_invalid"):
        predict(run, "What does the X-ray show?", [xray], ["A. Pneumonia", "A. Nothing"])
    with pytest.raises(ImageError, match="--image, image 1: the image must exist"):
        predict(run, "What does the X-ray show?", [Path("nowhere.png")], ["Pneumonia", "Nothing"])


def test_a_prediction_of_an_untrained_run_uses_the_base_model(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with context_of(recipe) as context:
        xray = context.data.test[0].images[0].path
        expected = context.data.test[0].fields["options"]
    answer = predict(find_run(recipe.run_folder), "What does the X-ray show?", [xray], list(expected.values()))
    assert answer.text


def test_a_recipe_continues_from_an_earlier_runs_adapter(context: Context, trained: Recipe, tmp_path: Path) -> None:
    tables: Tables = {
        "model": {"adapter": trained.run_folder},
        "lora": {"vision": True},
        "sft": {"max_steps": 1, "learning_rate": 1e-12},
        "evaluate": {"max_completion_tokens": TOKENS},
    }
    recipe = small_recipe(tmp_path, tables, name="goes_on")
    with context_of(recipe) as later:
        assert later.weights == context.run.weights_folder("sft")
        evaluate(later, "before", later.weights, [])
        assert completions(later, "before") == completions(context, "sft")
        later.run.mark_done("sft", train_sft(later))
        old, new = (load_file(place / "adapter_model.safetensors") for place in (context.weights, later.weights))  # type: ignore[operator]
        assert old.keys() == new.keys()  # no second adapter was added
        # An update of 1e-12 changes no weight other than 0, so the adapter equals the earlier one.
        assert all(torch.allclose(old[name], new[name], atol=1e-10) for name in old)


def completions(context: Context, name: str) -> list[str]:
    """Return the evaluation's answers. Both runs have the same synthetic data, because the seed is the same."""
    return [line["completion"] for line in predictions(context, name)]


def test_an_adapter_finds_its_base_after_its_run_was_deleted(trained: Recipe, tmp_path: Path) -> None:
    gone = trained.model.model_copy(update={"adapter": tmp_path / "gone"})
    weights = find_run(trained.run_folder).weights_folder("sft")
    HfBackend().load(trained.model_copy(update={"model": gone}), weights, trainable=False)
    shutil.copytree(weights, tmp_path / "other")
    settings = tmp_path / "other/adapter_config.json"
    other = {**read_json(settings), "base_model_name_or_path": str(tmp_path / "elsewhere")}
    settings.write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(RunError, match="gone"):
        HfBackend().load(trained.model_copy(update={"model": gone}), tmp_path / "other", trainable=False)


def test_an_adapter_of_another_model_is_rejected(trained: Recipe, tmp_path: Path) -> None:
    shutil.copytree(find_run(trained.run_folder).weights_folder("sft"), tmp_path / "other")
    file = tmp_path / "other/adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "layers.3" not in name}, file)
    with raises(ModelError, "model.adapter_not_loadable") as caught:
        HfBackend().load(trained, tmp_path / "other", trainable=False)
    assert caught.problem.place == str(tmp_path / "other")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run with full fine-tuning in two steps, and an export."""
    tables: Tables = {
        "model": {"tuning": "full"},
        "sft": {"max_steps": 2, "learning_rate": 1e-4},
        "export": {"verify": 4},
        "evaluate": {"max_completion_tokens": TOKENS, "before": False},
    }
    recipe = small_recipe(tmp_path_factory.mktemp("full"), tables, name="full").model_copy(update={"grpo": None})
    run_recipe(recipe, STAGES)
    return recipe


def test_full_fine_tuning_trains_saves_and_exports_full_weights(full: Recipe) -> None:
    with context_of(full) as context:
        folder = context.run.weights_folder("sft")
        base, tuned = (load_file(place / "model.safetensors") for place in (tiny.FOLDER, folder))
        assert base.keys() == tuned.keys()
        assert all(not torch.equal(base[name].float(), tuned[name]) for name in base if name.endswith("q_proj.weight"))
        config = read_json(folder / "config.json")
        assert config["eos_token_id"] == read_json(tiny.FOLDER / "config.json")["eos_token_id"]
        assert "use_cache" not in config
        result = export_of(context.run)
        assert result.adapter is None
        assert verified(merged_of(result)).differing == 0
        merged = context.run.path / "stages/export/merged"
        plain = AutoModelForImageTextToText.from_pretrained(merged)
        found = answers_of_plain_transformers(plain, AutoProcessor.from_pretrained(merged), context)
        assert found == completions(context, "sft")[:4]


def test_lora_continues_from_full_weights(full: Recipe, tmp_path: Path) -> None:
    """An adapter on an earlier full fine-tuning is loaded on that base, not on model.name."""
    tables: Tables = {
        "model": {"adapter": full.run_folder},
        "sft": {"max_steps": 1, "learning_rate": 1e-12},
        "evaluate": {"max_completion_tokens": TOKENS},
    }
    with context_of(small_recipe(tmp_path, tables, name="on_full")) as context, context_of(full) as earlier:
        context.run.mark_done("sft", train_sft(context))
        assert (context.weights / "adapter_config.json").is_file()  # type: ignore[operator]
        backend = HfBackend()
        policy = backend.load(context.recipe, context.weights, trainable=False)
        assert answers_of(backend, policy, context) == completions(earlier, "sft")[:4]


@pytest.fixture(scope="module")
def vqa_rad(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Recipe:
    """A few steps of the recipe for VQA-RAD, with the tiny model on a handful of its rows."""
    rows = shared_data / "cxr/vqa_rad"
    changes: Mapping[str, Any] = {
        "run.folder": str(tmp_path_factory.mktemp("vqa_rad")),
        "model.name": "tiny",
        "model.precision": "32bit",
        "model.max_tokens": 512,
        "data.train": str(rows / "trainset.json"),
        "data.test": str(rows / "testset.json"),
        "data.image_root": str(rows / "images"),
        "data.limit_train": 16,
        "data.limit_test": 8,
        "images.max_side": 112,
        "sft.max_steps": 2,
        "sft.gradient_checkpointing": False,
        "sft.optimizer": "adamw_torch",
        "grpo.max_steps": 2,
        "grpo.max_completion_tokens": 8,
        "grpo.probe_prompts": 0,  # completions of the tiny model on real radiographs may all have reward 0
        "grpo.gradient_checkpointing": False,
        "grpo.optimizer": "adamw_torch",
        "evaluate.max_completion_tokens": 8,
        "evaluate.bootstrap": 100,
        "export.verify": 2,
    }
    settings = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    recipe = load_recipe(ROOT / "recipes/vqa_rad.toml", settings, files=True)
    run_recipe(recipe, STAGES)
    return recipe


def test_vqa_rad_trains_and_is_evaluated(vqa_rad: Recipe) -> None:
    run = find_run(vqa_rad.run_folder)
    assert run.finished_stages()[1:] == ["evaluate-before", "sft", "evaluate-sft", "grpo", "evaluate-grpo", "export"]
    record = run.result("evaluate-grpo", EvaluationResult)
    assert record.primary.value.n == 8
    assert set(record.summary.by) == {"question_type", "answer_type"}
    steps = [line for line in run.metrics() if line["stage"] == "grpo" and "reward" in line]
    assert len(steps) == 2
    # A step of two closed questions has no open question for the reward of words.
    assert {f"rewards/{name}/mean" for name in ("exact", "token_f1", "format")} <= {*steps[0], *steps[1]}


def test_a_question_of_vqa_is_predicted_and_has_no_options(vqa_rad: Recipe, shared_data: Path) -> None:
    run = find_run(vqa_rad.run_folder)
    question = read_json(shared_data / "cxr/vqa_rad/testset.json")[0]
    xray = shared_data / "cxr/vqa_rad/images" / question["image_name"]
    answer = predict(run, question["question"], [xray])
    assert answer.text.strip()
    with raises(DataError, "predict.options_not_allowed"):
        predict(run, question["question"], [xray], ["yes", "no"])


def test_real_radiographs_have_predictions(trained: Recipe, shared_data: Path) -> None:
    xrays = sorted((shared_data / "cxr/nih").glob("*.png"))
    assert len(xrays) == 2
    run = find_run(trained.run_folder)
    options = ["Cardiomegaly", "Pneumothorax", "No acute finding"]
    answers = [predict(run, "What does the X-ray show?", [xray], options) for xray in xrays]
    assert all(answer.text.strip() for answer in answers)
    assert all(answer.problem is None or not answer.values.get("letter") for answer in answers)


def test_training_and_export_print_nothing_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No table per step, no progress bar per weights file, no message about aligned tokens."""
    recipe = small_recipe(tmp_path, {"sft": {"max_steps": 1}, "grpo": {"max_steps": 1}})
    with context_of(recipe) as context:
        context.run.mark_done("sft", train_sft(context))
        context.run.mark_done("grpo", train_grpo(context))
        export(with_export(context, verify=1))
    assert capfd.readouterr() == ("", "")


def test_unmergeable_or_missing_models_are_reported_before_training(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"export": {"to": ("adapter", "merged")}})
    shutil.copytree(tiny.FOLDER, tmp_path / "base")
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps({**read_json(config), "quantization_config": {"quant_method": "bitsandbytes"}}))
    for name, code in {
        str(tmp_path / "base"): "model.base_stored_quantized",
        "nobody/nothing": "model.not_found",
    }.items():
        model = recipe.model.model_copy(update={"name": name})
        with raises(ModelError, code):
            HfBackend().load(recipe.model_copy(update={"model": model}), None, trainable=True)
