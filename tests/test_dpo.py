"""DPO on the tiny model: its loss and reference, what it learns, its rows, resume, OOM recovery and the plan."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.oom import small_memory
from tests.helpers.preferences import dpo_recipe, write_pairs
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_data
from tests.helpers.training import StopAfter, adapter_of, context_of, same
from toolkit.data.loading import DataSplits
from toolkit.errors import DataError, Interrupted, RecipeError, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models.backend import Policy, Row, Sampling, TrainingJob
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.dry_run import derive_dry_run
from toolkit.pipeline.plan import parse_gpu, plan_language_model
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.training import dpo
from toolkit.training import train as training
from toolkit.training.dpo import build_dpo, train_dpo
from toolkit.training.sft import train_sft

SFT: dict[str, Any] = {"learning_rate": 1e-2, "max_steps": 3, "batch_size": 4, "accumulation": 1}


class Setup:
    """A policy, and the trainer that trains it on the pairs of a recipe."""

    def __init__(self, context: Context) -> None:
        self.backend, self.samples = HfBackend(), context.data.train
        self.prompts = Prompts.of(context.recipe, context.images)
        self.policy = self.backend.load(context.recipe, context.weights, trainable=True)
        folder = context.run.stage_folder("dpo")
        job = TrainingJob(context.recipe, self.prompts.pairs(self.samples), len(self.samples), folder)
        self.trainer = build_dpo(self.backend, self.policy, job)

    def batch(self, *numbers: int) -> dict[str, Any]:
        return dict(self.trainer.data_collator([{"index": number} for number in numbers]))

    def log_probs(self, policy: Policy, *numbers: int) -> torch.Tensor:
        """Return the log-probabilities of both answers, shape (2, rows), computed by the evaluation's own code."""
        pairs = [self.prompts.pairs(self.samples)(number) for number in numbers]
        found = [
            [math.fsum(tokens) for tokens in self.backend.log_probs(policy, pairs, answers)]
            for answers in ([str(row.answer) for row in pairs], [str(row.rejected) for row in pairs])
        ]
        return torch.tensor(found, dtype=torch.float64)


def move(policy: Policy, size: float) -> None:
    """Change every parameter of the trained adapter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".default." in name:
                parameter.add_(size * torch.randn_like(parameter))


def weights_of_sft(context: Context) -> None:
    context.run.mark_done("sft", train_sft(context))


# The loss and its reference.


@pytest.mark.slow
@pytest.mark.parametrize("after_sft", [False, True])
def test_the_first_loss_is_ln_2_because_the_reference_is_the_policy_at_the_start(
    tmp_path: Path, after_sft: bool
) -> None:
    recipe = dpo_recipe(tmp_path, tables={"sft": SFT if after_sft else None, "lora": {"dropout": 0.2}})
    with context_of(recipe) as context:
        if after_sft:
            weights_of_sft(context)
        result = train_dpo(context)
        first, *_, last = (line for line in context.run.metrics() if line["stage"] == "dpo" and "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["rewards/margins"], first["rewards/chosen"], first["rewards/rejected"]) == (0.0, 0.0, 0.0)
    assert last["rewards/margins"] > 0
    assert result.reference == ("stages/sft/weights" if after_sft else "the base model")
    assert result.first is not None
    assert result.last is not None
    assert (result.first.step, result.first.margin, result.last.step) == (1, 0.0, 4)
    assert result.last.margin == last["rewards/margins"]


@pytest.mark.slow
def test_the_loss_is_that_of_the_paper_by_log_probabilities_of_another_code_path(tmp_path: Path) -> None:
    """Rafailov et al. 2023, equation 7, with the log-probabilities that evaluation computes row by row."""
    recipe = dpo_recipe(tmp_path, tables={"sft": SFT, "dpo": {"beta": 0.25}})
    with context_of(recipe) as context:
        weights_of_sft(context)
        setup = Setup(context)
        start = setup.backend.load(recipe, context.weights, trainable=False)
        move(setup.policy, 0.05)
        numbers = (0, 3, 5)
        found = setup.trainer.compute_loss(setup.policy.model, setup.batch(*numbers)).item()
        policy, reference = setup.log_probs(setup.policy, *numbers), setup.log_probs(start, *numbers)
        base = setup.log_probs(setup.backend.load(recipe, None, trainable=False), *numbers)
    gains = policy - reference
    margins = 0.25 * (gains[0] - gains[1])
    expected = torch.log1p(torch.exp(-margins)).mean().item()
    assert abs(expected - math.log(2)) > 0.01
    assert found == pytest.approx(expected, rel=1e-4)
    # With the base model as the reference, the loss would be another one.
    of_base = torch.log1p(torch.exp(-0.25 * ((policy - base)[0] - (policy - base)[1]))).mean().item()
    assert abs(of_base - expected) > 1e-3


@pytest.mark.slow
def test_the_reference_is_frozen_and_is_not_saved(tmp_path: Path) -> None:
    recipe = dpo_recipe(tmp_path, tables={"sft": SFT, "run": {"checkpoint_steps": 1}})
    with context_of(recipe) as context:
        weights_of_sft(context)
        setup = Setup(context)
        start = load_file(context.weights / "adapter_model.safetensors") if context.weights else {}
        before = {name: value.clone() for name, value in setup.policy.model.named_parameters() if ".ref." in name}
        setup.trainer.train()
        after = dict(setup.policy.model.named_parameters())
        assert len(before) == len(start) > 0
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        for name, value in start.items():
            assert torch.equal(value, before[name.replace(".weight", ".ref.weight")])
        train_dpo(context)
        saved = adapter_of(recipe, "dpo")
        assert saved.keys() == start.keys()
        assert not same(saved, start)


def test_a_model_without_a_copy_of_its_adapter_is_rejected(tmp_path: Path) -> None:
    """TRL would use the base model as the reference."""
    recipe = dpo_recipe(tmp_path)
    policy = HfBackend().load(recipe, None, trainable=True)
    with raises(TrainingError, "training.dpo_reference_missing") as caught:
        dpo._check_reference(policy)
    assert caught.problem.value == ["default"]


# The batch.


@pytest.mark.slow
def test_a_batch_has_the_answers_after_the_prompt_of_sft_and_each_image_is_processed_once(tmp_path: Path) -> None:
    with context_of(dpo_recipe(tmp_path)) as context:
        setup = Setup(context)
        batch = setup.batch(1, 2)
        processor = setup.policy.processor
        sample = setup.samples[2]
        row = setup.prompts.row(sample, answer=True)
        from toolkit.models.collate import collate

        own = collate(setup.policy, [row])
    assert batch["input_ids"].shape == batch["completion_mask"].shape
    assert len(batch["input_ids"]) == 4
    chosen = batch["input_ids"][1][batch["attention_mask"][1].bool()]
    assert torch.equal(chosen, own["input_ids"][0])
    assert torch.equal(batch["completion_mask"][1][: len(chosen)].bool(), own["labels"][0] != -100)
    texts = [
        processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).strip()
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    answers = [setup.samples[number].preference for number in (1, 2)]
    assert texts == [*(one.chosen for one in answers if one), *(one.rejected for one in answers if one)]
    assert torch.equal(batch["pixel_values"][1], own["pixel_values"][0])
    assert torch.equal(batch["pixel_values"][:2], batch["pixel_values"][2:])
    cached = setup.trainer.data_collator.policy.processor.image_processor
    assert cached.processed + cached.cache_hits == 4
    assert cached.processed == len({ref.path for number in (1, 2) for ref in setup.samples[number].images})


@pytest.mark.slow
def test_other_pixels_change_the_log_probabilities_and_the_tower_computes_an_image_once(tmp_path: Path) -> None:
    with context_of(dpo_recipe(tmp_path)) as context:
        setup = Setup(context)
        move(setup.policy, 0.05)
        cache = next(one for one in setup.trainer.callback_handler.callbacks if hasattr(one, "_cache"))._cache

        def margin(batch: dict[str, Any]) -> float:
            setup.trainer._metrics["train"].clear()
            setup.trainer.compute_loss(setup.policy.model, batch)
            return float(setup.trainer._metrics["train"]["rewards/margins"][-1])

        batch = setup.batch(0, 4)
        other = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
        assert setup.samples[0].images != setup.samples[4].images
        first = margin(batch)
        assert (cache.computed, cache.reused) == (2, 6)  # two images, two answers, policy and reference
        assert margin(batch) == first
        assert abs(margin(other) - first) > 1e-4
        setup.trainer.callback_handler.on_step_begin(setup.trainer.args, setup.trainer.state, setup.trainer.control)
        assert not cache._images


@pytest.mark.slow
def test_dpo_changes_what_the_model_answers(tmp_path: Path) -> None:
    """The tiny model answers "No" to all of these questions, and the rejected answer of most of them is "no"."""
    tables = {"dpo": {"chosen": "bad", "rejected": "good", "max_steps": 30}}
    with context_of(dpo_recipe(tmp_path, tables=tables)) as context:
        rejected = [sample.preference.rejected for sample in context.data.train if sample.preference]
        before = answers_of(context)
        context.run.mark_done("dpo", train_dpo(context))
        after = answers_of(context)
    assert (after["margins"] > before["margins"]).all()
    assert (before["margins"] > 0).sum() <= 4
    assert (after["margins"] > 0).sum() >= 10

    def given(answers: dict[str, Any]) -> int:
        return sum(text.lower() == other for text, other in zip(answers["texts"], rejected, strict=True))

    assert given(before) >= 8
    assert given(after) == 0


def answers_of(context: Context) -> dict[str, Any]:
    """Return greedy answers to the training rows, and log p(chosen) - log p(rejected) of each."""
    backend = HfBackend()
    policy = backend.load(context.recipe, context.weights, trainable=False)
    rows = Prompts.of(context.recipe, context.images).pairs(context.data.train)
    pairs: list[Row] = [rows(number) for number in range(len(context.data.train))]
    texts = [one[0].text for one in backend.generate(policy, pairs, Sampling(max_tokens=8))]
    chosen = backend.log_probs(policy, pairs, [str(row.answer) for row in pairs])
    rejected = backend.log_probs(policy, pairs, [str(row.rejected) for row in pairs])
    margins = torch.tensor([sum(one) - sum(other) for one, other in zip(chosen, rejected, strict=True)])
    return {"texts": texts, "margins": margins}


# Resume and OOM recovery.


@pytest.mark.slow
@pytest.mark.parametrize("after_sft", [False, True])
def test_a_stopped_and_resumed_stage_ends_with_the_same_weights(
    tmp_path: Path, after_sft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"sft": SFT if after_sft else None}
    whole, halved = (dpo_recipe(tmp_path, name, tables) for name in ("whole", "halved"))
    for recipe in (whole, halved):
        with context_of(recipe) as context:
            if after_sft:
                weights_of_sft(context)
    with context_of(whole) as context:
        expected = train_dpo(context)
    plain = training.training_callbacks
    with context_of(halved) as context, monkeypatch.context() as patch:
        patch.setattr(training, "training_callbacks", lambda ctx, *rest: [StopAfter(ctx, 3), *plain(ctx, *rest)])
        with pytest.raises(Interrupted):
            train_dpo(context)
    with context_of(halved) as context:
        found = train_dpo(context)
    assert found.training.resumed_from == "step-00000003"
    assert same(adapter_of(whole, "dpo"), adapter_of(halved, "dpo"))
    assert (found.first, found.last) == (expected.first, expected.last)


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_training(tmp_path: Path) -> None:
    """The backward pass recomputes the policy, after the pass of the reference has switched adapters."""
    plain, recomputed = (
        dpo_recipe(tmp_path, name, {"dpo": {"max_steps": 2, "gradient_checkpointing": on}})
        for name, on in (("plain", False), ("recomputed", True))
    )
    for recipe in (plain, recomputed):
        with context_of(recipe) as context:
            train_dpo(context)
    one, other = adapter_of(plain, "dpo"), adapter_of(recomputed, "dpo")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_oom_gives_the_adapter_of_a_run_with_the_smaller_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (dpo_recipe(tmp_path, name, {"dpo": sizes}) for name, sizes in SIZES.items())
    with small_memory(monkeypatch, fits=2, gradients=True) as memory, context_of(large) as context:
        result = train_dpo(context, preflight=False)
    assert memory.raised == 1
    assert (result.training.gpu_memory.micro_batch, result.training.gpu_memory.accumulation) == (1, 4)
    with context_of(small) as context:
        train_dpo(context, preflight=False)
    assert same(adapter_of(large, "dpo"), adapter_of(small, "dpo"))


SIZES = {"large": {"batch_size": 2, "accumulation": 2}, "small": {"batch_size": 1, "accumulation": 4}}


@pytest.mark.slow
def test_the_preflight_step_does_not_change_the_training_and_uses_the_longest_pair(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 12, row_7={"bad": "no, " * 20})
    plain, tried = dpo_recipe(tmp_path, "plain"), dpo_recipe(tmp_path, "tried")
    with context_of(plain) as context:
        train_dpo(context, preflight=False)
    lengths: list[int] = []
    with context_of(tried) as context, pytest.MonkeyPatch.context() as patch:
        collate = dpo.PairCollator.__call__

        def measured(self: Any, examples: Any) -> Any:
            batch = collate(self, examples)
            lengths.append(batch["input_ids"].shape[1])
            return batch

        patch.setattr(dpo.PairCollator, "__call__", measured)
        result = train_dpo(context, preflight=True)
    assert result.training.gpu_memory.preflight is not None
    assert max(lengths[:2]) == max(lengths) == result.rejected_lengths.max > result.lengths.max
    assert same(adapter_of(plain, "dpo"), adapter_of(tried, "dpo"))


# The rows.


def test_rows_without_two_different_texts_are_counted_with_their_reason(tmp_path: Path) -> None:
    write_pairs(
        tmp_path / "rows",
        12,
        row_0={"bad": None},
        row_1={"bad": " "},
        row_2={"bad": 3},
        row_3={"bad": [{"role": "assistant", "content": "no"}]},
        row_4={"good": "yes", "bad": "yes "},
        row_5={"good": None},
        row_6={"bad": "no <image>"},
    )
    tables = {"dpo": {"chosen": "good"}, "data": {"max_dropped": 0.6}}
    data = load_data(dpo_recipe(tmp_path, tables=tables))
    counts = {(one.code, one.examples): one.count for one in data.dropped}
    assert counts == {
        ("data.preference_missing", ("row 0", "row 1")): 2,
        ("data.preference_missing", ("row 5",)): 1,
        ("data.value_not_text", ("row 2", "row 3")): 2,
        ("data.preference_equal", ("row 4",)): 1,
        ("data.image_outside_user_turn", ("row 6",)): 1,
    }
    assert len(data.train) == 5
    with raises(DataError, "data.too_many_unusable_rows"):
        load_data(dpo_recipe(tmp_path, tables={"dpo": {"chosen": "good"}}))


def test_the_chosen_answer_is_by_default_the_one_that_sft_learns(tmp_path: Path) -> None:
    data = load_data(dpo_recipe(tmp_path))
    for sample in data.train:
        assert sample.preference is not None
        assert sample.preference.chosen == sample.reference["answer"] != sample.preference.rejected
    # The files of the other splits need no such columns.
    assert data.test[0].preference is None
    assert load_data(replace_dpo(dpo_recipe(tmp_path), None)).train[0].preference is None


def replace_dpo(recipe: Recipe, section: Any) -> Recipe:
    return recipe.model_copy(update={"dpo": section})


def test_other_columns_are_other_data(tmp_path: Path) -> None:
    recipe = dpo_recipe(tmp_path, tables={"dpo": {"chosen": "good"}})
    swapped = dpo_recipe(tmp_path, tables={"dpo": {"chosen": "bad", "rejected": "good"}})
    found: list[DataSplits] = [load_data(one) for one in (recipe, swapped, replace_dpo(recipe, None))]
    assert len({one.fingerprint for one in found}) == 3
    first, second = (one.train[0].preference for one in found[:2])
    assert first is not None
    assert second == first[::-1]


def test_a_missing_column_is_named_with_its_key(tmp_path: Path) -> None:
    with raises(DataError, "data.column_missing") as caught:
        load_data(dpo_recipe(tmp_path, tables={"dpo": {"rejected": "bat"}}))
    assert (caught.problem.place, caught.problem.value) == ("dpo.rejected", "bat")
    assert "bad" in caught.problem.remedy


def test_pairs_that_are_too_long_are_named_before_training(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 12, row_7={"bad": "no, " * 150})
    with context_of(dpo_recipe(tmp_path)) as context, raises(DataError, "data.row_too_long") as caught:
        train_dpo(context)
    assert "1 of 12" in caught.problem.rule
    assert "row 7" in caught.problem.rule


def test_a_special_token_in_the_rejected_answer_stops_the_stage(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 12, row_2={"bad": "no<end_of_turn>"})
    with context_of(dpo_recipe(tmp_path)) as context, raises(DataError, "data.special_token_in_text") as caught:
        train_dpo(context)
    assert caught.problem.value == "<end_of_turn>"


# The recipe, the plan and the whole run.


@pytest.mark.parametrize(
    ("tables", "code", "place"),
    [
        ({"model": {"tuning": "full"}}, "recipe.dpo_of_full_tuning", "model.tuning"),
        ({"dpo": {"chosen": "bad"}}, "recipe.dpo_columns_equal", "dpo.chosen"),
        ({"prompt": {"context": ("bad",)}}, "recipe.dpo_column_in_prompt", "prompt.context"),
    ],
)
def test_a_recipe_that_dpo_cannot_train_is_rejected(
    tmp_path: Path, tables: dict[str, Any], code: str, place: str
) -> None:
    with raises(RecipeError, code) as caught:
        dpo_recipe(tmp_path, tables=tables)
    assert caught.problem.place.endswith(f": {place}")


def test_the_plan_counts_steps_pairs_and_the_longer_answer(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 11, row_7={"bad": "no, " * 20})
    tables = {"dpo": {"max_steps": None, "epochs": 2.0, "batch_size": 2, "accumulation": 3}, "sft": SFT}
    recipe = dpo_recipe(tmp_path, tables=tables)
    plan = plan_language_model(recipe, None)
    assert list(plan.stages) == ["sft", "dpo"]
    assert plan.work is not None
    assert (plan.work["dpo"].steps, plan.work["dpo"].samples) == (4, 6)
    assert plan.memory is not None
    plain, longer = plan.memory["sft"].estimate.peak, plan.memory["dpo"].estimate.peak
    assert longer.parts["reference"] == plain.parts["adapter"] > 0
    assert plain.parts["reference"] == 0
    shorter = plan_language_model(
        dpo_recipe(tmp_path, tables={**tables, "dpo": {**tables["dpo"], "batch_size": 1}}), None
    )
    assert shorter.memory is not None
    assert shorter.memory["dpo"].estimate.peak.parts["inputs"] * 2 == longer.parts["inputs"]


def test_the_plan_for_a_gpu_says_that_its_figures_of_dpo_are_unchecked(tmp_path: Path) -> None:
    for gpu, count in ((parse_gpu("T4"), 1), (None, 0)):
        found = plan_language_model(dpo_recipe(tmp_path), gpu).findings
        assert sum(one.details.code == "plan.dpo_estimate_unchecked" for one in found) == count


@pytest.mark.slow
def test_the_planned_steps_are_those_of_the_trainer(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 11)
    recipe = dpo_recipe(tmp_path, tables={"dpo": {"max_steps": None, "epochs": 1.5, "accumulation": 2}})
    plan = plan_language_model(recipe, None)
    assert plan.work is not None
    with context_of(recipe) as context:
        result = train_dpo(context)
    assert result.training.steps == plan.work["dpo"].steps


def test_the_plan_reports_rejected_answers_that_are_too_long(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows", 12, row_7={"bad": "no, " * 150})
    (found,) = (
        one
        for one in plan_language_model(dpo_recipe(tmp_path), None).problems
        if one.details.code == "data.row_too_long"
    )
    assert found.certain
    assert "row 7" in found.details.rule


def test_unsloth_rejects_dpo_with_the_reason(tmp_path: Path) -> None:
    from toolkit.models.unsloth.preload import unsupported_reasons
    from toolkit.planning.stages import planned_backend

    recipe = dpo_recipe(tmp_path, tables={"model": {"name": "google/medgemma-4b-it", "precision": "4bit"}})
    assert [reason for reason in unsupported_reasons(recipe) if "[dpo]" in reason]
    assert planned_backend(recipe) == "hf"
    assert planned_backend(replace_dpo(recipe, None)) == "unsloth"


def test_unsloth_changes_methods_of_dpo_that_trl_has_not() -> None:
    """Unsloth's vision support for DPO patches these methods. If TRL has them again, DPO may work with Unsloth."""
    from trl import DPOTrainer

    assert not hasattr(DPOTrainer, "concatenated_forward")
    assert not hasattr(DPOTrainer, "concatenated_inputs")


def test_a_dry_run_without_the_files_leaves_dpo_out(tmp_path: Path) -> None:
    recipe = dpo_recipe(tmp_path, tables={"sft": SFT})
    kept = derive_dry_run(recipe).dpo_settings
    assert (kept.rejected, kept.batch_size, kept.beta) == ("bad", 2, recipe.dpo_settings.beta)
    derived = derive_dry_run(recipe, own_rows=False)
    assert derived.dpo is None
    assert derived.sft is not None


@pytest.mark.slow
def test_a_run_trains_sft_dpo_and_grpo_in_this_order_and_compares_their_evaluations(tmp_path: Path) -> None:
    tables = {
        "sft": SFT,
        "grpo": {
            "max_steps": 1,
            "prompts_per_step": 2,
            "generations": 2,
            "micro_batch": 4,
            "max_completion_tokens": 8,
            "probe_prompts": 0,
        },
        "evaluate": {"batch_size": 6, "max_completion_tokens": 8, "bootstrap": 100},
        "export": {"to": ("adapter",), "verify": 2},
    }
    recipe = dpo_recipe(tmp_path, tables=tables)
    results = run_recipe(recipe, STAGES)
    assert [row.label for row in results.rows][-4:] == ["before", "after SFT", "after DPO", "after GRPO"]
    assert set(results.evaluations["dpo"].primary.differences) >= {"before", "sft"}
    assert results.grpo is not None
    assert results.dpo is not None
    assert read_results(recipe.run_folder) == results
    stages = [line["stage"] for line in results.run.metrics()]
    assert list(dict.fromkeys(stages)) == ["sft", "dpo", "grpo"]
    assert results.export is not None
    card = (recipe.run_folder / results.export.formats["adapter"].folder / "README.md").read_text(encoding="utf-8")
    assert "DPO" in card
    assert "- dpo" in card.partition("---\n")[2].partition("---\n")[0]


def test_dropout_of_the_adapter_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = dpo_recipe(tmp_path, tables={"lora": {"dropout": 0.1}, "dpo": {"max_steps": 1}})
    with context_of(recipe) as context:
        train_dpo(context)
    (warned,) = (one for one in warnings_in(caplog) if one.code == "training.dpo_without_dropout")
    assert warned.value == 0.1
