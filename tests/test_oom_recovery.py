"""OOM recovery: smaller sizes, and from there on bit for bit the run that was resumed, or began, with those sizes.

A CPU raises no such error, so one is injected: a hook on the model raises what a GPU raises, forward or in the middle
of the backward pass, if more rows go through than "fit"; an optimizer raises it after it has changed some parameters.

With TOOLKIT_TEST_BACKEND=unsloth (tests/unsloth_cpu, tests/test_unsloth_oom.py) the same tests run through Unsloth.
"""

import inspect
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer

from tests.helpers.model_families import build
from tests.helpers.oom import SmallMemory, backend_class, lines_of, recipe_of, run, small_memory
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.training import StopAfter, adapter_of, context_of, same, small_recipe
from toolkit.data.task import Decision
from toolkit.errors import Interrupted, ModelError, RunError, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Row, Sampling, TrainingJob
from toolkit.models.collate import collate
from toolkit.models.hf import HfBackend
from toolkit.models.lengths import check_lengths
from toolkit.models.oom import BatchLimit, Sizes, attempt
from toolkit.models.prompts import Prompts
from toolkit.pipeline.dry_run import derive_dry_run
from toolkit.recipe import Recipe
from toolkit.runfolder import read_json, read_lines, write_json
from toolkit.runfolder.usage import machine
from toolkit.training import train as training
from toolkit.training.grpo import train_grpo
from toolkit.training.grpo_trainer import PolicyTrainer, _parts
from toolkit.training.oom_recovery import Recovery, advice
from toolkit.training.preflight import preflight_job
from toolkit.training.results import OutOfMemory
from toolkit.training.resume import checkpoints
from toolkit.training.sft import train_sft

ROOT = Path(__file__).parents[1]


@contextmanager
def stop_after(patch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Send a signal in ``step``. The run must end with Interrupted."""
    plain = training.training_callbacks
    with patch.context() as inner:
        stopping = lambda context, *rest: [StopAfter(context, step), *plain(context, *rest)]  # noqa: E731
        inner.setattr(training, "training_callbacks", stopping)
        with pytest.raises(Interrupted):
            yield


def without_recovery(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines without the values of recovery."""
    names = {"out_of_memory", "micro_batch", "accumulation", "completions_per_generate"}
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


def store_sizes(recipe: Recipe, stage: str, sizes: Sizes) -> None:
    """Write the sizes that a stage stores after an out-of-memory error."""
    written = {"micro_batch": sizes.micro_batch, "accumulation": sizes.accumulation}
    file = recipe.run_folder / "stages" / stage / "sizes.json"
    write_json(file, {**written, "completions_per_generate": sizes.completions, "recoveries": []})


def one_by_one(stage: str) -> Sizes:
    """The recipe's step of 4 in four passes."""
    return Sizes(1, 4, None if stage == "sft" else 4)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where", "most"), [("sft", "forward", 4), ("grpo", "backward", 2)])
def test_oom_in_step_1_gives_the_adapter_of_a_run_with_the_smaller_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, where: str, most: int
) -> None:
    changes: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sft": ({"batch_size": 4, "accumulation": 1}, {"batch_size": 1, "accumulation": 4}),
        "grpo": ({"beta": 0.1, "micro_batch": 2}, {"beta": 0.1, "micro_batch": 1}),
    }
    ours, theirs = changes[stage]
    recovered = recipe_of(stage, tmp_path, "recovered", **{stage: ours})
    begun = recipe_of(stage, tmp_path, "begun", **{stage: theirs})
    run(begun, stage)
    with small_memory(monkeypatch, fits=1, where=where, gradients=True) as memory, stop_after(monkeypatch, 1):
        run(recovered, stage)
    errors = memory.raised
    assert memory.seen == [*([4, 2] if most == 4 else [2]), *[1] * 4]  # SFT: 4, 2 and 1, two errors in a row
    with small_memory(monkeypatch, fits=1, where=where, gradients=True) as memory:
        record = run(recovered, stage)
    assert memory.seen == [1] * 4  # the sizes are stored
    assert same(adapter_of(recovered, stage), adapter_of(begun, stage))
    assert without_recovery(lines_of(recovered)) == lines_of(begun)
    assert [line.get("out_of_memory") for line in lines_of(recovered)] == [errors, None]
    assert (lines_of(recovered)[0]["micro_batch"], lines_of(recovered)[0]["accumulation"]) == (1, 4)
    found = record.training.gpu_memory
    assert (found.out_of_memory, found.micro_batch, found.accumulation) == (errors, 1, 4)
    assert {one.continued_from for one in found.recoveries} == {"the start of the stage"}
    assert record.training.resumed_from == "step-00000001"
    assert "train_loss" in closing_of(begun)
    assert "train_loss" not in closing_of(recovered)  # it would be the sum of the last start, divided by all steps


def keep_every_row(patch: pytest.MonkeyPatch) -> None:
    """Let every pass have all of its rows, also those without an advantage, so that passes can be counted."""
    patch.setattr("toolkit.training.grpo._can_skip_zero_variance", lambda *_, **__: False)


def closing_of(recipe: Recipe) -> dict[str, Any]:
    """Return the final summary of the last start in metrics.jsonl."""
    return [line for line in read_lines(recipe.run_folder / "metrics.jsonl") if "train_runtime" in line][-1]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where"), [("sft", "backward"), ("grpo", "forward")])
def test_oom_in_a_later_step_gives_the_adapter_of_a_run_resumed_with_the_smaller_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, where: str
) -> None:
    keep_every_row(monkeypatch)
    resumed, recovered = (recipe_of(stage, tmp_path, name) for name in ("resumed", "recovered"))
    with stop_after(monkeypatch, 1):
        run(resumed, stage)
    store_sizes(resumed, stage, one_by_one(stage))
    assert run(resumed, stage).training.resumed_from == "step-00000001"
    # One step of two passes succeeds, and one pass of the second step.
    with small_memory(monkeypatch, fits=1, where=where, gradients=True, spared=3) as memory:
        record = run(recovered, stage)
    assert memory.seen == [*[2] * 4, *[1] * 4]
    assert same(adapter_of(recovered, stage), adapter_of(resumed, stage))
    assert without_recovery(lines_of(recovered)) == without_recovery(lines_of(resumed))
    assert [line["step"] for line in lines_of(recovered)] == [1, 2]
    assert [line.get("out_of_memory") for line in lines_of(recovered)] == [None, 1]
    assert record.training.gpu_memory.recoveries == (
        OutOfMemory(
            step=2,
            during="pass" if stage == "sft" else "rollout or pass",
            micro_batch=1,
            accumulation=4,
            completions_per_generate=one_by_one(stage).completions,
            continued_from="step-00000001",
        ),
    )
    ours, theirs = (checkpoints(recipe.run_folder / "stages" / stage)[0] for recipe in (recovered, resumed))
    assert ours.name == theirs.name == "step-00000001"
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    states = [read_json(path / "trainer_state.json") for path in (ours, theirs)]
    assert [entry["step"] for entry in states[0]["log_history"]] == [1]
    for name in ("global_step", "epoch", "num_input_tokens_seen", "total_flos"):
        assert states[0][name] == states[1][name], name


@pytest.mark.slow
def test_oom_in_the_optimizer_step_falls_back_to_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = recipe_of("sft", tmp_path, "begun", sft={"batch_size": 1, "accumulation": 4})
    recovered = recipe_of("sft", tmp_path, "recovered")
    run(begun, "sft")
    with failing_optimizer(monkeypatch, 2):  # step 1 is finished but not saved
        record = run(recovered, "sft")
    assert same(adapter_of(recovered, "sft"), adapter_of(begun, "sft"))
    assert without_recovery(lines_of(recovered)) == lines_of(begun)  # step 1 was repeated, and is logged once
    assert [line["step"] for line in lines_of(recovered)] == [1, 2]
    (event,) = record.training.gpu_memory.recoveries
    assert (event.step, event.during) == (2, "optimizer step")
    assert event.continued_from == "the start of the stage"


@contextmanager
def failing_optimizer(patch: pytest.MonkeyPatch, call: int) -> Iterator[None]:
    """Call number ``call`` of ``optimizer.step`` changes every parameter and then runs out of memory."""
    plain, calls = torch.optim.AdamW.step, []

    def step(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(call)
        if len(calls) != call:
            return plain(self, *args, **options)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    with patch.context() as inner:
        inner.setattr(torch.optim.AdamW, "step", step)
        yield


@pytest.mark.slow
def test_errors_of_every_kind_in_one_stage_of_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass of 8 rows, the optimizer's first step, and a forward pass of 2 rows in the second step."""
    recipe = recipe_of("sft", tmp_path, "many", sft={"batch_size": 8, "accumulation": 1})
    with (
        small_memory(monkeypatch, fits=4, where="backward", gradients=True),
        failing_optimizer(monkeypatch, 1),
        small_memory(monkeypatch, fits=1, gradients=True, spared=7) as memory,  # 8; 4, 4; 2, 2, 2, 2 in step 1
    ):
        record = run(recipe, "sft")
    start = "the start of the stage"
    assert [(one.step, one.during, one.continued_from) for one in record.training.gpu_memory.recoveries] == [
        (1, "pass", start),
        (1, "optimizer step", start),
        (2, "pass", "step-00000001"),
    ]
    assert record.training.gpu_memory.micro_batch == 1
    assert memory.seen[-8:] == [1] * 8
    assert [line["step"] for line in lines_of(recipe)] == [1, 2]


@pytest.mark.slow
def test_errors_of_every_kind_in_one_stage_of_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout of 4 completions, and a pass of 2 in the second step."""
    keep_every_row(monkeypatch)
    recipe = recipe_of("grpo", tmp_path, "many")
    with (
        small_memory(monkeypatch, fits=2, gradients=False),
        small_memory(monkeypatch, fits=1, gradients=True, spared=2),
    ):
        record = run(recipe, "grpo")
    events = record.training.gpu_memory.recoveries
    assert [one.during for one in events] == ["rollout", "rollout or pass"]
    assert events[1].continued_from == "step-00000001"
    assert (record.training.gpu_memory.completions_per_generate, record.training.gpu_memory.micro_batch) == (2, 1)
    assert [line["step"] for line in lines_of(recipe)] == [1, 2]


@pytest.mark.slow
def test_full_fine_tuning_recovers_from_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "full", model={"tuning": "full"})
    with small_memory(monkeypatch, fits=1, gradients=True, spared=2):
        record = run(recipe, "sft")
    assert record.training.gpu_memory.recoveries[0].continued_from == "step-00000001"
    assert [line["step"] for line in lines_of(recipe)] == [1, 2]


@pytest.mark.slow
def test_a_signal_during_recovery_stops_the_run_after_the_step_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("sft", tmp_path, "stopped")

    def signalled(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    with small_memory(monkeypatch, fits=1, gradients=True, spared=2) as memory:
        memory.fail = signalled  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            run(recipe, "sft")
    assert [path.name for path in checkpoints(recipe.run_folder / "stages" / "sft")] == ["step-00000001"]


def test_sizes_that_do_not_divide_the_step_are_rejected(tmp_path: Path) -> None:
    recipe = recipe_of("sft", tmp_path, "other")
    with context_of(recipe) as context:
        store_sizes(recipe, "sft", Sizes(3, 2))
        with raises(RunError, "training.kept_sizes_differ") as caught:
            train_sft(context)
        assert caught.problem.value == "3 x 2"
        assert "4, the rows" in caught.problem.rule


@pytest.mark.parametrize(
    "text", ["", "null", '{"micro_batch": 1', '{"micro_batch": 1}', '{"micro_batch": "1"}', "\x00"]
)
def test_damaged_sizes_are_an_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(text)
    with raises(RunError, "training.kept_sizes_damaged") as caught:
        Recovery(tmp_path, recipe_of("sft", tmp_path, "other"), "sft")
    assert caught.problem.place == str(file)
    assert "Delete the file" in caught.problem.remedy


@pytest.mark.slow
def test_a_rollout_repeated_in_parts_gives_the_adapter_of_a_run_with_these_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, recovered = (recipe_of("grpo", tmp_path, name) for name in ("begun", "recovered"))
    with context_of(begun) as context:
        store_sizes(begun, "grpo", Sizes(2, 2, 1))
        train_grpo(context)
    generations = count_generations(monkeypatch)
    with small_memory(
        monkeypatch, fits=1, gradients=False, spared=2
    ) as memory:  # check_images_used's passes have one row
        record = run(recovered, "grpo")
    assert generations == [4, 2, *[1] * 8]  # out of memory at the third token of all 4, and at the first of a pair
    assert memory.raised == 2
    assert len(memory.models) == 1  # a rollout does not reload the model
    assert same(adapter_of(recovered, "grpo"), adapter_of(begun, "grpo"))
    assert without_recovery(lines_of(recovered)) == without_recovery(lines_of(begun))
    assert lines_of(recovered)[0]["completions_per_generate"] == 1
    assert [one.completions_per_generate for one in record.training.gpu_memory.recoveries] == [2, 1]
    assert record.training.gpu_memory.micro_batch == 2
    assert read_json(recovered.run_folder / "stages" / "grpo" / "sizes.json")["completions_per_generate"] == 1


@pytest.mark.slow
def test_a_reference_that_does_not_fit_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL computes log-probabilities without gradients in micro-batches too."""
    recipe = recipe_of("grpo", tmp_path, "reference", grpo={"beta": 0.1, "max_steps": 1})
    monkeypatch.setattr(PolicyTrainer, "_get_per_token_logps_and_entropies", too_small_for(1))
    record = run(recipe, "grpo")
    assert [one.micro_batch for one in record.training.gpu_memory.recoveries] == [1]


def too_small_for(fits: int) -> Callable[..., Any]:
    plain = PolicyTrainer._get_per_token_logps_and_entropies

    def measured(self: Any, model: Any, input_ids: Any, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled() and (options.get("batch_size") or 0) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return plain(self, model, input_ids, *args, **options)

    return measured


@pytest.mark.slow
def test_medgemma_grpo_finishes_after_an_oom_error_in_its_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_recipe(ROOT / "recipes" / "medgemma_grpo.toml", [f"run.folder={tmp_path}"])
    assert shipped.grpo is not None
    assert shipped.grpo.micro_batch == 1  # so that no smaller micro-batch could help
    recipe = derive_dry_run(shipped, own_rows=False)
    assert recipe.grpo is not None
    short = recipe.grpo.model_copy(update={"max_steps": 1, "max_completion_tokens": 8, "probe_prompts": 0})
    recipe = recipe.model_copy(update={"sft": None, "evaluate": None, "export": None, "grpo": short})
    with small_memory(monkeypatch, fits=1, gradients=False) as memory:
        record = run(recipe, "grpo")
    assert memory.raised > 1
    # A pass of the update still has a packed row with the 4 completions of a prompt.
    assert (record.training.gpu_memory.micro_batch, record.training.gpu_memory.completions_per_generate) == (4, 1)
    assert adapter_of(recipe, "grpo")


@pytest.mark.slow
def test_a_rollout_of_one_completion_that_does_not_fit_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("grpo", tmp_path, "none", grpo={"micro_batch": 1})
    with (
        small_memory(monkeypatch, fits=0, gradients=False),
        no_image_check(monkeypatch),
        raises(TrainingError, "training.out_of_memory"),
    ):
        run(recipe, "grpo")
    kept = read_json(recipe.run_folder / "stages" / "grpo" / "sizes.json")
    assert (kept["micro_batch"], kept["completions_per_generate"]) == (1, 1)
    assert [one["during"] for one in kept["recoveries"]] == ["rollout"] * 2  # 4 and 2 completions per call


@contextmanager
def no_image_check(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip the image check, whose passes would not fit either."""
    with patch.context() as inner:
        inner.setattr("toolkit.training.preflight.check_images_used", lambda *_: True)
        yield


@pytest.mark.slow
def test_if_one_row_does_not_fit_the_error_has_the_advice_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("sft", tmp_path, "none", sft={"batch_size": 1})
    with context_of(recipe) as context:
        write_json(context.run.plan_file, PLAN)
        with (
            small_memory(monkeypatch, fits=0, gradients=True),
            raises(TrainingError, "training.out_of_memory") as caught,
        ):
            train_sft(context)
    for change in ("images.max_side = 448", "lora.r = 8"):
        assert change in caught.problem.remedy, change
    assert "batch_size" not in caught.problem.remedy  # it is 1 already
    assert "224" not in caught.problem.remedy  # for a smaller GPU


PLAN: dict[str, Any] = {
    "gpu": {"memory_gb": 15.8},
    "memory": {
        "sft": {
            "fits": {
                "8": {"fits": False, "changes": ["images.max_side = 224"]},
                "12": {"fits": False, "changes": ["sft.batch_size = 1 (and 4 times sft.accumulation)", "lora.r = 8"]},
                "16": {"fits": True, "changes": []},
                "24": {"fits": True, "changes": []},
            }
        }
    },
}
PLAN["memory"]["sft"]["fits"]["12"]["changes"].append("images.max_side = 448")


def test_advice_needs_no_plan_and_no_gpu(tmp_path: Path) -> None:
    recipe = recipe_of("grpo", tmp_path, "advice")
    assert advice(recipe, "sft", PLAN) != advice(recipe, "sft", None)
    for plan in (
        None,
        {},
        PLAN,
        {"memory": None, "gpu": None},
        {"memory": {"grpo": {"fits": {"8": {"changes": None}}}}},
    ):
        found = advice(recipe, "grpo", plan)  # the plan has no GRPO
        assert "grpo.max_completion_tokens below 8" in found
        assert "micro_batch" not in found


@pytest.mark.slow
def test_one_of_several_processes_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "several")
    monkeypatch.setattr("toolkit.training.train.world_size", lambda: 2)
    with small_memory(monkeypatch, fits=1, gradients=True), raises(TrainingError, "training.process_out_of_memory"):
        run(recipe, "sft")


def test_bnpo_with_smaller_micro_batches_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for loss, warned in (("bnpo", True), ("dapo", False)):
        caplog.clear()
        recipe = recipe_of("grpo", tmp_path, loss, grpo={"loss": loss})
        Recovery(tmp_path / loss, recipe, "grpo").shrink(1, "pass", None, None)
        assert ("training.loss_depends_on_batch" in [problem.code for problem in warnings_in(caplog)]) == warned


@pytest.mark.slow
def test_other_errors_are_not_treated_as_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        run(recipe_of("sft", tmp_path, "broken"), "sft")


def test_sizes_halve_to_divisors_of_the_step() -> None:
    def path(sizes: Sizes) -> list[tuple[int, int]]:
        found = []
        while (smaller := sizes.smaller()) is not None:
            sizes = smaller
            found.append((sizes.micro_batch, sizes.accumulation))
        return found

    assert path(Sizes(8, 2)) == [(4, 4), (2, 8), (1, 16)]
    assert path(Sizes(5, 4)) == [(2, 10), (1, 20)]
    assert path(Sizes(9, 1)) == [(3, 3), (1, 9)]
    assert path(Sizes(7, 1)) == [(1, 7)]
    assert path(Sizes(1, 4)) == []
    assert Sizes(1, 8, 8).smaller() == Sizes(1, 8, 4)  # only the completions can be halved
    assert Sizes(2, 4, 1).smaller() == Sizes(1, 8, 1)
    assert Sizes(1, 8, 1).smaller() is None


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_preflight_step_does_not_change_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    plain, checked = (
        recipe_of(stage, tmp_path, name, grpo={"max_completion_tokens": 40, "max_steps": 1}, sft={"max_steps": 1})
        for name in ("plain", "checked")
    )
    before, lengths = run(plain, stage), spy_on_completions(monkeypatch)
    with small_memory(monkeypatch, fits=99, gradients=True) as memory:
        record = run(checked, stage, preflight=True)
    assert before.training.gpu_memory.preflight is None
    preflight = record.training.gpu_memory.preflight
    assert preflight is not None
    assert preflight.seconds > 0
    assert preflight.peak_reserved_bytes is None
    assert memory.seen == [2, 2] * 2  # the preflight step is an optimizer step
    assert len(memory.models) == 2
    assert (record.training.seconds_per_step.measured or 0) > 0
    assert lines_of(plain) == lines_of(checked)
    assert same(adapter_of(plain, stage), adapter_of(checked, stage))
    if stage == "grpo":
        assert lengths[0] == [40] * 4  # to the limit
        assert all(min(ones) < 40 for ones in lengths[1:])


def test_trl_1_16_may_pass_more_arguments_to_a_rollout() -> None:
    signature = inspect.signature(PolicyTrainer._generate_single_turn)
    assert signature.bind(object(), [[0]], None, {}, 4, has_tool_images=False)


def spy_on_completions(patch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record the lengths of the completions of each rollout."""
    plain, lengths = PolicyTrainer._generate_single_turn, list[list[int]]()

    def spy(self: Any, *args: Any) -> Any:
        found = plain(self, *args)
        lengths.append([len(ids) for ids in found[0]])
        return found

    patch.setattr(PolicyTrainer, "_generate_single_turn", spy)
    return lengths


@pytest.mark.slow
def test_an_existing_checkpoint_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "saved", run={"checkpoint_steps": 1})
    plain, saved = Trainer._save_checkpoint, []

    def save(self: Any, *args: Any, **options: Any) -> None:
        saved.append(self.state.global_step)
        plain(self, *args, **options)

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    with small_memory(monkeypatch, fits=1, gradients=True, spared=2):
        record = run(recipe, "sft")
    assert record.training.gpu_memory.recoveries[0].continued_from == "step-00000001"
    assert saved == [1, 2]


@pytest.mark.slow
def test_steps_that_recovery_omits_from_the_log_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of("sft", tmp_path, "seldom", run={"log_steps": 2}, sft={"max_steps": 4})
    with small_memory(monkeypatch, fits=1, gradients=True, spared=6):  # step 4 does not fit
        run(recipe, "sft")
    (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "training.steps_not_logged")
    assert warned.place == "steps 3 to 3"
    assert [line["step"] for line in lines_of(recipe)] == [2, 4]


@pytest.mark.slow
def test_a_finished_stage_without_weights_keeps_the_record_of_its_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("sft", tmp_path, "unwritten")
    with small_memory(monkeypatch, fits=1, gradients=True):
        first = run(recipe, "sft")
    weights = adapter_of(recipe, "sft")
    shutil.rmtree(recipe.run_folder / "stages" / "sft" / "weights")
    record = run(recipe, "sft")
    assert same(adapter_of(recipe, "sft"), weights)
    assert record.training.resumed_from == "step-00000002"
    assert record.training.gpu_memory.recoveries == first.training.gpu_memory.recoveries
    assert type(record) is type(first)


def test_errors_missing_from_metrics_jsonl_are_in_its_next_line(tmp_path: Path) -> None:
    recipe = recipe_of("sft", tmp_path, "unlogged")
    Recovery(tmp_path, recipe, "sft").shrink(1, "pass", None, None)
    again = Recovery(tmp_path, recipe, "sft")  # the run was interrupted before the line was written
    assert again.figures()["out_of_memory"] == 1
    assert again.figures() == {}


def test_a_model_that_does_not_fit_the_gpu_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fail)
    with raises(ModelError, "model.too_large_for_gpu") as caught:
        HfBackend().load(recipe_of("sft", tmp_path, "large"), None, trainable=True)
    assert "4bit" in caught.problem.remedy


def test_the_preflight_step_uses_the_longest_rows(tmp_path: Path) -> None:
    longest = (7, 3, 9, 1, 2, 0)
    sft = preflight_job(job_of("sft", tmp_path, longest), "sft")
    assert {sft.rows(number).answer for number in range(sft.count)} == {"7", "3"}  # those of one micro-batch
    assert sft.count == 4
    grpo = preflight_job(job_of("grpo", tmp_path, longest), "grpo")
    assert [grpo.rows(number).answer for number in range(grpo.count)] == ["7", "3"]
    few = preflight_job(job_of("sft", tmp_path, (5,)), "sft")
    assert {few.rows(number).answer for number in range(few.count)} == {"5"}
    with context_of(recipe_of("sft", tmp_path, "counted")) as context:
        prompts = Prompts.of(context.recipe, context.images)
        processor = HfBackend().load_without_model(context.recipe).processor
        lengths = check_lengths(processor, prompts, context.data.train, 256)
        rows = [prompts.row(sample, answer=True) for sample in context.data.train]
        policy = HfBackend().load_without_model(context.recipe)
        tokens = [collate(policy, [row])["input_ids"].shape[1] for row in rows]
        assert [tokens[number] for number in lengths.longest] == sorted(tokens, reverse=True)


def job_of(stage: str, folder: Path, longest: tuple[int, ...]) -> TrainingJob:
    """A job whose rows have their numbers as answers."""
    recipe = recipe_of(stage, folder, "job")
    return TrainingJob(recipe, lambda number: Row([], [], str(number)), 24, folder, longest=longest)


@pytest.mark.slow
def test_sizes_halved_in_the_preflight_step_stay_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = "sft"
    recipe = recipe_of(stage, tmp_path, "checked", sft={"max_steps": 1})
    with small_memory(monkeypatch, fits=1, gradients=True) as memory:
        record = run(recipe, stage, preflight=True)
    assert memory.seen == [2, *[1] * 8]
    (event,) = record.training.gpu_memory.recoveries
    assert (event.step, event.during, event.micro_batch) == (1, "preflight step", 1)
    assert lines_of(recipe)[0]["micro_batch"] == 1


class FakeCuda:
    """torch.cuda's counters of one GPU, which a reset puts to what is held."""

    def __init__(self) -> None:
        self.peak = self.held = 0

    def hold(self, size: int) -> None:
        self.held, self.peak = size, max(self.peak, size)

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def max_memory_reserved(self, device: int) -> int:
        return self.peak

    def max_memory_allocated(self, device: int) -> int:
        return self.peak // 2

    def reset_peak_memory_stats(self, device: int) -> None:
        self.peak = self.held


def test_a_measurement_within_a_stage_keeps_the_peak_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(machine, "_cuda", lambda: cuda)
    machine.reset_peaks()
    for size in (90, 10):
        cuda.hold(size)
    machine.begin_peak()
    for size in (40, 10):
        cuda.hold(size)
    assert machine.gpu_peaks() == {"peak_allocated_bytes": 20, "peak_reserved_bytes": 40}
    assert machine.peak_gpu_memory() == 90
    machine.begin_peak()
    assert machine.gpu_peaks()["peak_reserved_bytes"] == 10
    assert machine.peak_gpu_memory() == 90
    machine.reset_peaks()
    assert machine.peak_gpu_memory() == 10


def count_generations(patch: pytest.MonkeyPatch) -> list[int]:
    """Prompts of each call of a model's ``generate`` from now on."""
    from transformers import GenerationMixin

    plain, calls = GenerationMixin.generate, []

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(options["input_ids"]))
        return plain(self, *args, **options)

    patch.setattr(GenerationMixin, "generate", generate)
    return calls


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_rollout_is_split_with_the_images_of_each_row(size: int) -> None:
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 4]])
    fields = {
        "image_grid_thw": grids.tolist(),
        "pixel_values": [[float(patch)] for patch in range(28)],  # 4 + 8 + 16 patches
        "token_type_ids": [[0], [1], [2], [3]],
    }
    images = [["a"], None, ["b", "c"], None]
    parts = list(_parts([[0], [1], [2], [3]], images, fields, size))
    assert [ids for prompts, _, _ in parts for ids in prompts] == [[0], [1], [2], [3]]
    assert max(len(prompts) for prompts, _, _ in parts) == min(size, 4)
    assert [kind for _, _, cut in parts for kind in cut["token_type_ids"]] == [[0], [1], [2], [3]]
    pixels = [torch.tensor(cut["pixel_values"]) for _, _, cut in parts if "pixel_values" in cut]
    assert torch.cat(pixels).flatten().tolist() == list(range(28))
    if size == 1:
        assert [len(one) for one in pixels] == [4, 24]
        assert parts[1][1:] == (None, {"token_type_ids": [[1]]})
        inseparable: dict[str, Any] = {"pixel_values": torch.zeros(3, 1), "num_tiles": [1, 1]}
        for name, value in inseparable.items():
            with raises(TrainingError, "training.rollout_not_separable") as caught:
                list(_parts([[0], [1]], [["a"], ["b"]], {name: value}, 1))
            assert caught.problem.place == f"grpo, {name}"


@pytest.mark.slow
def test_images_of_different_sizes_keep_their_patches_in_a_split_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    """Greedy completions do not depend on how many are generated at once, unless one saw another's patches."""
    tables: dict[str, dict[str, Any]] = {
        # With smaller weights, the last token of the prompt alone would determine the completion.
        "model": {"name": str(build("qwen2_5_vl", shared_data, tmp_path, initializer_range=0.5)), "max_tokens": 600},
        "images": {"max_side": 84},
        "grpo": {
            "max_steps": 1,
            "prompts_per_step": 3,
            "generations": 2,
            "micro_batch": 6,
            "max_completion_tokens": 8,
            "top_k": 1,
        },
    }
    whole, cut_up = (recipe_of("grpo", tmp_path, name, **tables) for name in ("whole", "cut"))
    unequal_images(monkeypatch)
    seen: list[Any] = []
    plain = PolicyTrainer._generate_single_turn

    def spy(self: Any, *args: Any) -> Any:
        seen.append(plain(self, *args)[0])
        return seen[-1], None

    monkeypatch.setattr(PolicyTrainer, "_generate_single_turn", spy)
    run(whole, "grpo")
    with small_memory(monkeypatch, fits=3, gradients=False) as memory:
        run(cut_up, "grpo")
    assert memory.raised == 1
    assert seen[0] == seen[1]
    assert len({str(ids) for ids in seen[0]}) > 1


def unequal_images(patch: pytest.MonkeyPatch) -> None:
    """Every third image has half the height."""
    plain = Prompts.row

    def row(self: Prompts, sample: Any, *, answer: bool = False) -> Any:
        found = plain(self, sample, answer=answer)
        if sum(map(ord, sample.id)) % 3 == 0:
            for place, image in enumerate(found.images):
                smaller = image.resize((image.width, image.height // 2))
                smaller.info["toolkit_key"] = f"half of {image.info['toolkit_key']}"
                found.images[place] = smaller
        return found

    patch.setattr(Prompts, "row", row)


@contextmanager
def evaluated(context: Context, fits: int) -> Iterator[tuple[SmallMemory, Any, list[Any]]]:
    prompts = Prompts.of(context.recipe, context.images)
    policy = backend_class()().load(context.recipe, None, trainable=False)
    memory = SmallMemory(fits)
    hook = memory.put_into(policy.model)
    yield memory, policy, [prompts.row(sample) for sample in context.data.test]
    hook.remove()


@pytest.mark.slow
def test_greedy_completions_are_the_same_in_smaller_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        context_of(recipe_of("sft", tmp_path, "evaluated")) as context,
        evaluated(context, fits=99) as (_, policy, rows),
    ):
        wanted = backend_class()().generate(policy, rows[:7], Sampling(12))
        with evaluated(context, fits=3) as (memory, policy, rows), caplog.at_level(logging.WARNING):
            assert backend_class()().generate(policy, rows[:7], Sampling(12)) == wanted
            assert memory.raised == 2
            assert policy.batch_limit.limit == 2
            warned = warnings_in(caplog)
            assert len(warned) == len([line for line in caplog.records if line.levelno == logging.WARNING]) == 2
            assert [problem.code for problem in warned] == ["generation.batch_halved"] * 2
            assert [[int(n) for n in re.findall(r"\d+", problem.rule)] for problem in warned] == [[7, 4], [4, 2]]
            assert backend_class()().generate(policy, rows[:7], Sampling(12)) == wanted
            assert memory.raised == 2  # the smaller batch stays


@pytest.mark.slow
def test_several_completions_of_one_prompt_are_generated_in_batches(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=2) as (_, policy, rows):
        groups = HfBackend().generate(policy, rows[:2], Sampling(8, temperature=1.0, count=5))
        assert [len(group) for group in groups] == [5, 5]
        assert policy.batch_limit.limit == 2


@pytest.mark.slow
def test_one_completion_that_does_not_fit_is_an_error_with_advice(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=0) as (_, policy, rows):
        with raises(ModelError, "generation.out_of_memory") as caught:
            HfBackend().generate(policy, rows[:2], Sampling(8))
        assert "images.max_side" in caught.problem.remedy
        assert not policy.model.training


@pytest.mark.slow
@pytest.mark.parametrize(("fits", "seen"), [(8, [2, 8]), (3, [1, 2, 2])])
def test_options_that_do_not_fit_are_scored_in_halves(tmp_path: Path, fits: int, seen: list[int]) -> None:
    """Four prompts with four options each. The smallest batch is one prompt, which is encoded once."""
    decision = Decision({text: text for text in ("Nodule", "Effusion", "Pneumonia", "Normal")}, ends=True)
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=100) as (memory, policy, rows):
        rows = [Row(rows[0].messages, rows[0].images)] * 4
        expected = HfBackend().choice_log_probs(policy, rows, [[decision]] * 4)
        memory.fits = fits
        memory.seen.clear()
        found = HfBackend().choice_log_probs(policy, rows, [[decision]] * 4)
        assert memory.seen[-2 * len(seen) :] == [*seen, *seen]
        assert memory.raised == {8: 1, 3: 3}[fits]
    for (one,), (other,) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_only_out_of_memory_errors_are_caught() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: fail(torch.OutOfMemoryError("CUDA out of memory"))) is None
    assert (
        attempt(lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))) is None
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        attempt(lambda: fail(RuntimeError("size mismatch")))


def test_halving_ends_at_one() -> None:
    rows = BatchLimit()
    halved = []
    while rows.halve(rows.size_for(13)):
        halved.append(rows.limit)
    assert halved == [7, 4, 2, 1]
    assert rows.errors == 5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tiny", "qwen3_vl"])
def test_checkpointing_computes_no_gradients_for_a_frozen_vision_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, request: pytest.FixtureRequest
) -> None:
    """The adapter's gradients equal those without checkpointing."""
    name = family if family == "tiny" else str(build(family, request.getfixturevalue("shared_data"), tmp_path))
    gradients, needed = {}, []
    for checkpointing in (False, True):
        tables: dict[str, dict[str, Any]] = {
            "model": {"name": name, "max_tokens": 600},
            "sft": {"max_steps": 1, "gradient_checkpointing": checkpointing},
        }
        recipe = recipe_of("sft", tmp_path, f"checkpointing-{checkpointing}", **tables)
        load = HfBackend.load

        def watched(self: HfBackend, *args: Any, load: Any = load, **options: Any) -> Any:
            policy = load(self, *args, **options)
            from toolkit.models.vision_cache import find_tower

            tower = find_tower(policy.model.get_base_model())
            assert tower is not None
            for module in tower.modules():
                module.register_forward_hook(lambda *seen: needed.append(_requires(seen[1]) or _requires(seen[2])))
            return policy

        with monkeypatch.context() as patch:
            patch.setattr(HfBackend, "load", watched)
            run(recipe, "sft")
            (line,) = lines_of(recipe)
        gradients[checkpointing] = (line["loss"], line["grad_norm"], adapter_of(recipe, "sft"))
    assert needed
    assert not any(needed)
    (loss, norm, plain), (loss_again, norm_again, checkpointed) = gradients[False], gradients[True]
    assert (loss_again, norm_again) == (pytest.approx(loss), pytest.approx(norm))
    for key in plain:
        torch.testing.assert_close(checkpointed[key], plain[key])


def _requires(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return values.requires_grad
    if isinstance(values, Mapping):
        return any(map(_requires, values.values()))
    return isinstance(values, list | tuple) and any(map(_requires, values))


@pytest.mark.slow
def test_rollouts_register_no_hooks_on_the_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    load = HfBackend.load

    def loaded(self: HfBackend, *args: Any, **options: Any) -> Any:
        policy = load(self, *args, **options)
        kept.append(policy)
        return policy

    monkeypatch.setattr(HfBackend, "load", loaded)
    run(recipe_of("grpo", tmp_path, "hooks", grpo={"gradient_checkpointing": True}), "grpo")
    assert not kept[0].model.get_input_embeddings()._forward_hooks
