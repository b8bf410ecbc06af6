"""SFT and GRPO on the tiny model: learning, stop and resume to the same adapter, and checks before training."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.helpers.damage import change_one_byte
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_data
from tests.helpers.training import ADAPTER, StopAfter, adapter_of, context_of, length_reward, only, same, small_recipe
from toolkit.errors import DataError, Interrupted, RecipeError, RewardError, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models import lengths as lengths_module
from toolkit.models import lora as adapter
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import check_lengths
from toolkit.models.prompts import Prompts
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe, dump_recipe
from toolkit.runfolder import read_lines
from toolkit.runfolder.manifest import MANIFEST, write_manifest
from toolkit.tasks import TASKS
from toolkit.training import callbacks, grpo, resume
from toolkit.training import train as training
from toolkit.training.grpo import describe_reference, make_reward_scorer, train_grpo
from toolkit.training.grpo_trainer import PolicyTrainer
from toolkit.training.results import GrpoResult, SftResult
from toolkit.training.rewards import check_rewards_apply, recipe_rewards
from toolkit.training.sft import train_sft


def weights_of(recipe: Recipe, stage: str) -> dict[str, torch.Tensor]:
    folder = recipe.run_folder / "stages" / stage / "weights"
    return load_file(folder / (ADAPTER if recipe.model.tuning == "lora" else "model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {}),
        ("grpo", {}),
        ("grpo", {"grpo": {"beta": 0.1}}),
        ("sft", {"model": {"tuning": "full"}}),
        ("grpo", {"model": {"tuning": "full"}}),
    ],
)
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, stage: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    work: Callable[[Context], SftResult | GrpoResult] = train_sft if stage == "sft" else train_grpo
    whole, halved = only(stage, tmp_path, "whole", changes), only(stage, tmp_path, "halved", changes)
    with context_of(whole) as context:
        work(context)
    plain = training.training_callbacks
    with context_of(halved) as context, monkeypatch.context() as patch:
        # Step 3 is between the checkpoints of steps 2 and 4, so the stop itself must save.
        stop_in_order = lambda ctx, *rest: [StopAfter(ctx, 3), *plain(ctx, *rest)]  # noqa: E731
        patch.setattr(training, "training_callbacks", stop_in_order)
        with pytest.raises(Interrupted):
            work(context)
    assert not (halved.run_folder / "stages" / stage / "weights").exists()
    with context_of(halved) as context:
        record = work(context)
    assert record.training.resumed_from == "step-00000003"
    assert same(weights_of(whole, stage), weights_of(halved, stage))


@pytest.mark.slow
def test_grpo_resumed_in_its_second_epoch_uses_the_prompts_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 rows, 2 per step: the second epoch begins with step 3, and the stop is in it.
    changes = {"data": {"synthetic": {"kind": "chest", "train": 4, "test": 2, "size": 64}}}
    whole, halved = only("grpo", tmp_path, "whole", changes), only("grpo", tmp_path, "halved", changes)
    with context_of(whole) as context:
        train_grpo(context)
    plain = training.training_callbacks
    with context_of(halved) as context, monkeypatch.context() as patch:
        patch.setattr(training, "training_callbacks", lambda ctx, *rest: [StopAfter(ctx, 3), *plain(ctx, *rest)])
        with pytest.raises(Interrupted):
            train_grpo(context)
    with context_of(halved) as context:
        train_grpo(context)
    assert same(weights_of(whole, "grpo"), weights_of(halved, "grpo"))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "tuning"), [("sft", "lora"), ("grpo", "lora"), ("sft", "full")])
def test_a_run_interrupted_after_its_last_checkpoint_trains_no_further_step(
    tmp_path: Path, stage: str, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: Callable[[Context], SftResult | GrpoResult] = train_sft if stage == "sft" else train_grpo
    whole, broken = (only(stage, tmp_path, name, {"model": {"tuning": tuning}}) for name in ("whole", "broken"))
    with context_of(whole) as context:
        work(context)
    with context_of(broken) as context, monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            work(context)
        lines = len(context.run.metrics())
    with context_of(broken) as context:
        record = work(context)
        assert (record.training.steps, record.training.resumed_from) == (4, "step-00000004")
        assert len(context.run.metrics()) == lines
    assert same(weights_of(whole, stage), weights_of(broken, stage))


def _disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_accumulated_batches_equal_one_batch(tmp_path: Path) -> None:
    """The loss is the mean over the answer tokens of the whole step, however it is divided into forward passes."""
    losses = {}
    for name, sizes in {"one": (8, 1), "two": (4, 2), "eight": (1, 8)}.items():
        changes = {"max_steps": 1, "batch_size": sizes[0], "accumulation": sizes[1]}
        recipe = small_recipe(tmp_path, {"sft": changes, "lora": {"dropout": 0.0}}, name=name)
        with context_of(recipe) as context:
            train_sft(context)
            line = next(line for line in context.run.metrics() if "loss" in line)
            losses[name] = (line["loss"], line["grad_norm"])
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["eight"] == pytest.approx(losses["one"], rel=1e-5)


@pytest.mark.slow
def test_sft_lowers_the_loss_and_keeps_few_checkpoints(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"sft": {"max_steps": 12, "learning_rate": 5e-3}})
    with context_of(recipe) as context:
        record = train_sft(context)
        lines = [line for line in context.run.metrics() if "loss" in line]
        assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
        assert record.lengths.max <= record.lengths.limit
        assert len(resume.checkpoints(context.run.stage_folder("sft"))) <= recipe.run.keep_checkpoints


@pytest.mark.slow
def test_an_incomplete_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    recipe = only("sft", tmp_path)
    with context_of(recipe) as context:
        half = context.run.stage_folder("sft") / resume.PARTIAL / "checkpoint-2"
        half.mkdir(parents=True)
        (half / "trainer_state.json").write_text("{", encoding="utf-8")
        record = train_sft(context)
    assert record.training.resumed_from is None
    assert record.training.steps == 4


@pytest.mark.slow
def test_grpo_continues_from_the_sft_adapter(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path, {"rewards": length_reward(tmp_path)})) as context:
        context.run.mark_done("sft", train_sft(context))
        start = context.weights
        assert start == context.run.weights_folder("sft")
        train_grpo(context)
        before, after = load_file(start / ADAPTER), adapter_of(context.recipe, "grpo")
        assert before.keys() == after.keys()  # no second adapter was added
        assert not same(before, after)


@pytest.mark.slow
def test_grpo_logs_the_deviation_of_each_reward_and_the_fraction_of_unreadable_answers(tmp_path: Path) -> None:
    with context_of(only("grpo", tmp_path)) as context:
        train_grpo(context)
        line = next(line for line in context.run.metrics() if line["step"] == 1)
    for name in ("letter", "explanation", "format"):
        assert f"rewards/{name}/mean" in line
        assert f"reward/{name}/std" in line
    assert 0 <= line["reward/unreadable"] <= 1
    assert 0 <= line["completions/clipped_ratio"] <= 1


@pytest.mark.slow
def test_the_kl_term_is_measured_against_the_start_adapter(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"beta": 0.1, "max_steps": 2}, "run": {"checkpoint_steps": 1}})
    with context_of(recipe) as context:
        context.run.mark_done("sft", train_sft(context))
        record = train_grpo(context)
        kl = [line["kl"] for line in context.run.metrics() if line["stage"] == "grpo" and "kl" in line]
        # The reference is the SFT adapter, not the base model. The remaining difference is dropout in the update.
        assert kl[0] == pytest.approx(0, abs=1e-3)
        assert record.kl_reference.endswith("(stages/sft/weights)")
        saved = adapter_of(recipe, "grpo")
        assert not any(".ref." in name for name in saved)


def test_without_a_kl_term_the_record_says_so(tmp_path: Path) -> None:
    assert describe_reference(small_recipe(tmp_path), None) == "beta = 0: no KL term, no reference model"


def test_training_without_the_section_of_its_stage_is_an_error(tmp_path: Path) -> None:
    with context_of(only("sft", tmp_path)) as context, raises(RecipeError, "recipe.section_missing"):
        train_grpo(context)


@pytest.mark.slow
def test_an_image_is_opened_and_processed_once_per_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"max_steps": 1}, "images": {"memory_cache_mb": 0, "disk_cache": False}})
    seen: list[Any] = []
    build = grpo.build_grpo

    def remember(backend: Any, policy: Any, job: Any) -> Any:
        trainer = build(backend, policy, job)
        seen.append(trainer)
        return trainer

    monkeypatch.setattr(grpo, "build_grpo", remember)
    with context_of(recipe.model_copy(update={"sft": None})) as context:
        before = context.images.report().opened
        train_grpo(context)
        opened = context.images.report().opened - before
    memory = seen[0].processing_class.image_processor
    # One step of 2 prompts x 4 generations. TRL opens row 0 once more to read its columns, and prefetches one batch.
    # Without the cache, TRL processes 2 x 8 images per step. The image check before training opens two images.
    assert memory.processed == 2
    assert memory.cache_hits == 14
    assert opened <= 5 + 2


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_dropout_is_off_in_the_rollout_and_on_in_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    changes = {"lora": {"dropout": 0.5}, "grpo": {"max_steps": 2, "beta": beta}}
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    forward = torch.nn.Dropout.forward

    def watched(self: torch.nn.Dropout, values: torch.Tensor) -> torch.Tensor:
        seen[torch.is_grad_enabled()].add(self.training)
        return forward(self, values)

    monkeypatch.setattr(torch.nn.Dropout, "forward", watched)
    with context_of(only("grpo", tmp_path, changes=changes)) as context:
        train_grpo(context)
    assert seen == {True: {True}, False: {False}}


def test_the_probe_stops_a_run_with_truncated_completions(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"probe_prompts": 2, "max_completion_tokens": 1}})
    with (
        context_of(recipe.model_copy(update={"sft": None})) as context,
        raises(TrainingError, "training.probe_truncated") as caught,
    ):
        train_grpo(context)
    assert caught.problem.place == "[grpo] max_completion_tokens"
    assert caught.problem.value == "8 of 8 at 1 tokens"


def test_the_probe_stops_a_run_with_zero_variance_groups(tmp_path: Path) -> None:
    weights = {"letter": 0.0, "explanation": 0.0, "evidence": 0.0, "brevity": 0.0, "format": 1.0}
    recipe = small_recipe(tmp_path, {"grpo": {"probe_prompts": 2, "probe_max_truncated": 1.0}, "rewards": weights})
    with (
        context_of(recipe.model_copy(update={"sft": None})) as context,
        raises(TrainingError, "training.probe_zero_variance"),
    ):
        train_grpo(context)


@pytest.mark.slow
def test_a_failed_probe_is_a_warning_if_the_recipe_requests_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = {"probe_prompts": 2, "probe_on_failure": "report", "max_completion_tokens": 1, "max_steps": 1}
    with (
        context_of(only("grpo", tmp_path, changes={"grpo": failing})) as context,
        caplog.at_level("WARNING", "toolkit"),
    ):
        record = train_grpo(context)
    (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "training.probe_truncated")
    assert warned.value == "8 of 8 at 1 tokens"
    assert record.probe is not None
    assert record.probe.failure == str(warned)


@pytest.mark.slow
def test_the_probe_does_not_change_the_training(tmp_path: Path) -> None:
    plain = only("grpo", tmp_path, "plain")
    probe = {"probe_prompts": 2, "probe_max_truncated": 1.0, "probe_on_failure": "report"}
    probed = only("grpo", tmp_path, "probed", {"grpo": probe})
    for recipe in (plain, probed):
        with context_of(recipe) as context:
            train_grpo(context)
    assert same(adapter_of(plain, "grpo"), adapter_of(probed, "grpo"))


@pytest.mark.slow
def test_a_reward_that_raises_stops_the_training_and_names_the_sample(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def broken(sample, answer):\n    return 1 / 0\n", encoding="utf-8")
    recipe = small_recipe(tmp_path, {"rewards": {"custom": (f"{file}:broken",)}})
    with (
        context_of(recipe.model_copy(update={"sft": None})) as context,
        raises(RewardError, "rewards.function_raised") as caught,
    ):
        train_grpo(context)
    assert re.fullmatch(r"reward broken, .*/train\.json, row \d+", caught.problem.place)


def test_rows_that_are_too_long_are_named_before_training(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"model": {"max_tokens": 60}})
    with context_of(recipe) as context, raises(DataError, "data.row_too_long") as caught:
        train_sft(context)
    assert caught.problem.value == 60
    assert "24 of 24" in caught.problem.rule
    assert "train.json, row 0: " in caught.problem.rule
    assert caught.problem.rule.count("train.json") == 1
    assert context.data.train[0].id not in str(caught.problem)


def test_counted_lengths_equal_those_of_the_batches(tmp_path: Path) -> None:
    from toolkit.models.collate import collate

    with context_of(small_recipe(tmp_path)) as context:
        policy = HfBackend().load(context.recipe, None, trainable=False)
        prompts = Prompts.of(context.recipe, context.images)
        samples = context.data.train
        lengths = check_lengths(policy.processor, prompts, samples, 500)
        batch = collate(policy, [prompts.row(sample, answer=True) for sample in samples])
        assert lengths.tokens.max == batch["input_ids"].shape[1]


def test_of_many_rows_those_that_might_be_too_long_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths_module, "COUNT_ALL", 8)
    monkeypatch.setattr(lengths_module, "SAMPLED", 4)
    with context_of(small_recipe(tmp_path)) as context:
        processor = HfBackend().load(context.recipe, None, trainable=False).processor
        prompts, samples = Prompts.of(context.recipe, context.images), context.data.train
        lengths = check_lengths(processor, prompts, samples, 5000)
        assert (lengths.tokens.rows, lengths.tokens.counted) == (24, 4)  # every sixth of 24
        exact = check_lengths(processor, prompts, samples[:8], 5000)
        assert exact.tokens.counted == 8
        with raises(DataError, "data.row_too_long") as caught:
            check_lengths(processor, prompts, samples, 100)
        assert "24 of 24 do not: " in caught.problem.rule
        assert f"{samples[0].place}: " in caught.problem.rule


def test_the_reward_scorer_agrees_with_the_evaluation(tmp_path: Path) -> None:
    from toolkit.models.backend import Completion

    with context_of(small_recipe(tmp_path)) as context:
        task, samples = TASKS["mcq"], context.data.train
        scorer = make_reward_scorer(task, recipe_rewards(context.recipe), samples, 2)
        right = Completion(task.target(samples[0]), 20, False)
        values, figures = scorer.score([0, 0], [right, Completion("no idea", 3, False)])
        assert values[0]["letter"] == task.scores(samples[0], task.parse(right.text, samples[0]))["accuracy"] == 1
        assert values[1]["letter"] == 0
        assert figures["reward/unreadable"] == 0.5


@pytest.mark.slow
def test_a_run_stops_at_sigterm_and_resumes(tmp_path: Path) -> None:
    """The command is killed within SFT and run again: exit code 143, then the adapter of an uninterrupted run."""
    whole, killed = only("sft", tmp_path, "whole"), only("sft", tmp_path, "killed")
    run_recipe(whole, STAGES)
    file = tmp_path / "killed.toml"
    file.write_text(dump_recipe(killed), encoding="utf-8")
    command = [sys.executable, "-m", "toolkit", "run", str(file)]
    metrics = killed.run_folder / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 143, output
    assert "Traceback" not in output
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert same(adapter_of(whole, "sft"), adapter_of(killed, "sft"))


@pytest.mark.slow
def test_every_line_of_the_metrics_is_plain_json(tmp_path: Path) -> None:
    recipe = only("sft", tmp_path)
    with context_of(recipe) as context:
        train_sft(context)
        assert all(json.dumps(line) for line in read_lines(context.run.metrics_file))


@pytest.mark.slow
def test_tensorboard_files_are_in_the_stages_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = small_recipe(tmp_path, {"run": {"report_to": ("tensorboard",)}, "sft": {"max_steps": 1}})
    with context_of(recipe) as context:
        train_sft(context)
        assert list((context.run.stage_folder("sft") / "tensorboard").glob("events.*"))
        assert not (context.run.stage_folder("sft") / resume.PARTIAL).exists()
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.slow
def test_the_mask_of_image_tokens_is_aligned_with_the_image_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL tokenizes a rendered prompt twice. A second BOS would shift the mask in training by one position."""
    seen = []
    plain = PolicyTrainer._check_token_types

    def look(self: PolicyTrainer, input_ids: torch.Tensor, fields: dict[str, Any]) -> None:
        plain(self, input_ids, fields)
        image = self.processing_class.tokenizer.image_token_id
        seen.append(torch.equal((input_ids == image).long(), fields["token_type_ids"]))

    monkeypatch.setattr(PolicyTrainer, "_check_token_types", look)
    with context_of(only("grpo", tmp_path, changes={"grpo": {"max_steps": 1, "micro_batch": 4}})) as context:
        train_grpo(context)
    assert seen
    assert all(seen)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 2), (1, 2), (2, 1)])
def test_grpo_supports_several_images_per_prompt(tmp_path: Path, counts: tuple[int, int]) -> None:
    recipe = small_recipe(tmp_path, {"grpo": {"max_steps": 2, "micro_batch": 2}, "rewards": length_reward(tmp_path)})
    with context_of(recipe.model_copy(update={"sft": None})) as context:
        files = sorted((context.run.path / "synthetic" / "images").glob("*.png"))
        rows = json.loads((context.run.path / "synthetic" / "train.json").read_text(encoding="utf-8"))
        for number, row in enumerate(rows.values()):
            first = number % len(files)
            row["ImagePath"] = [f"images/{file.name}" for file in (files * 2)[first : first + counts[number % 2]]]
        (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
        synthetic = context.run.path / "synthetic"
        source = {"train": str(tmp_path / "train.json"), "test": str(synthetic / "test.json"), "image_root": synthetic}
        changed = context.recipe.model_copy(
            update={
                "data": context.recipe.dataset.model_copy(update={"synthetic": None, **source, "on_leak": "report"})
            }
        )
        record = train_grpo(replace(context, recipe=changed, data=load_data(changed)))
    assert record.training.steps == 2


def test_too_few_rows_for_a_step_are_rejected(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"data": {"limit_train": 1}})
    with (
        context_of(recipe.model_copy(update={"sft": None})) as context,
        raises(TrainingError, "training.too_few_prompts") as caught,
    ):
        train_grpo(context)
    assert caught.problem.place == "[grpo] prompts_per_step"


def test_a_non_finite_loss_ends_training_before_a_checkpoint_is_saved(tmp_path: Path) -> None:
    report = callbacks.MetricsReporter(lambda step, steps, figures: None)
    state = TrainerState(global_step=3, max_steps=8)
    with raises(TrainingError, "training.loss_not_finite") as caught:
        report.on_log(TrainingArguments(str(tmp_path)), state, TrainerControl(), {"loss": float("nan")})
    assert caught.problem.place == "step 3"


def test_rows_with_a_special_token_are_named(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context:
        policy = HfBackend().load(context.recipe, None, trainable=False)
        prompts = Prompts.of(context.recipe, context.images)
        sample = context.data.train[0]
        bad = replace(sample, fields={**sample.fields, "question": "Yes.<end_of_turn>\n<start_of_turn>model"})
        with raises(DataError, "data.special_token_in_text") as caught:
            check_lengths(policy.processor, prompts, [bad], 500)
        assert (caught.problem.place, caught.problem.value) == (sample.place, "<end_of_turn>")


def test_an_answer_with_a_special_token_is_named(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context:
        prompts = Prompts.of(context.recipe, context.images)
        (sample,) = context.data.train[:1]
        bad = replace(sample, reference={**sample.reference, "explanation": "Opacity.<end_of_turn>"})
        policy = HfBackend().load_without_model(context.recipe)
        with raises(DataError, "data.special_token_in_text") as caught:
            check_lengths(policy.processor, prompts, [bad], 256)
        assert caught.problem.value == "<end_of_turn>"
        check_lengths(
            policy.processor, prompts, [bad], 256, answer_tokens=16
        )  # GRPO's prompts do not contain the answer


def test_the_adapter_of_a_recipe_does_not_differ_from_it(tmp_path: Path) -> None:
    for vision in (False, True):
        lora = {"vision": vision, "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")}
        recipe = small_recipe(tmp_path, {"lora": lora}, name=f"vision-{vision}")
        backend = HfBackend()
        backend.save(backend.load(recipe, None, trainable=True), tmp_path / recipe.run.name)
        again = backend.load(recipe, tmp_path / recipe.run.name, trainable=True)
        assert adapter.differences(again.model, recipe.lora) == ""
        other = recipe.lora.model_copy(update={"vision": not vision, "r": 5, "targets": ("q_proj",)})
        words = adapter.differences(again.model, other)
        assert "r is 4, not 5" in words
        assert f"vision is {str(vision).lower()}, not {str(not vision).lower()}" in words
        assert "not q_proj" in words


def test_a_row_without_an_applicable_reward_is_named_before_training(tmp_path: Path) -> None:
    off = {"letter": 0.0, "evidence": 0.0, "format": 0.0, "brevity": 0.0, "explanation": 1.0}
    with context_of(small_recipe(tmp_path, {"rewards": off})) as context:
        samples = list(context.data.train)
        bare = replace(samples[5], reference={**samples[5].reference, "explanation": None})
        table = recipe_rewards(context.recipe)
        check_rewards_apply(TASKS["mcq"], table, samples)
        with raises(RewardError, "rewards.none_applies") as caught:
            check_rewards_apply(TASKS["mcq"], table, [*samples, bare])
        assert caught.problem.place == bare.place


@pytest.mark.parametrize("state", ["\x01\x01\x01", "null", "{}", '{"global_step": 2}'])
def test_a_checkpoint_whose_step_cannot_be_read_is_skipped(tmp_path: Path, state: str) -> None:
    for step, text in ((2, '{"global_step": 2, "max_steps": 4}'), (4, state)):
        checkpoint = tmp_path / "checkpoints" / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(text)
        write_manifest(checkpoint)
    assert resume.last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000002"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "{}",
        '{"trainer_state.json": 34}',
        '{"trainer_state.json": {"size": 34}}',
        '{"../2": {"size": 1, "sha256": ""}}',
        "[" * 9999,
    ],
)
def test_a_checkpoint_whose_manifest_has_no_digests_is_skipped(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        checkpoint = tmp_path / "checkpoints" / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 4}')
        write_manifest(checkpoint)
    (checkpoint / MANIFEST).write_text(text)
    assert resume.last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000002"
    assert [problem.place for problem in warnings_in(caplog)] == [str(checkpoint)]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["optimizer.pt", "trainer_state.json", "adapter_model.safetensors", "manifest.json"])
def test_a_corrupt_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = only("sft", tmp_path, changes={"sft": {"max_steps": 6}, "run": {"checkpoint_steps": 2}})
    with context_of(recipe) as context:
        train_sft(context)
        folder = context.run.stage_folder("sft")
        newest = resume.checkpoints(folder)[-1]
        change_one_byte(newest / damage)
        assert resume.last_checkpoint(folder) == resume.checkpoints(folder)[-2]
        (newest / damage).write_bytes(b"")
        assert resume.last_checkpoint(folder) == resume.checkpoints(folder)[-2]
        (newest / damage).unlink()
        assert resume.last_checkpoint(folder) == resume.checkpoints(folder)[-2]
    warned = [problem for problem in warnings_in(caplog) if problem.code == "training.checkpoint_incomplete"]
    assert [problem.place for problem in warned] == [str(newest)] * 3
    changed, empty, missing = [problem.rule for problem in warned]
    assert f"{damage}: it cannot be read" in changed if damage == MANIFEST else f"{damage}: its" in changed
    assert f"{damage}: it cannot be read" in empty if damage == MANIFEST else f"{damage}: it has 0 bytes" in empty
    assert f"{damage}: it is missing" in missing
