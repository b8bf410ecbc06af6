"""Tests of the Backend protocol. They run on hf. ``TOOLKIT_TEST_BACKEND=unsloth`` runs them on Unsloth (CUDA)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.problems import raises
from tests.helpers.training import Tables, context_of, length_reward, small_recipe
from toolkit.data.task import Decision
from toolkit.errors import ModelError, TrainingError
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.models.backend import Policy, Row, Sampling, TrainingJob
from toolkit.models.collate import encode_prompts
from toolkit.models.messages import Message, conversation
from toolkit.models.prompts import Prompts
from toolkit.training.grpo import build_grpo, make_reward_scorer
from toolkit.training.preflight import check_images_used
from toolkit.training.rewards import recipe_rewards
from toolkit.training.sft import build_sft


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("protocol")
    tables: Tables = {
        "sft": {"max_steps": 2},
        "grpo": {"max_steps": 2, "learning_rate": 1e-2},
        "rewards": length_reward(folder),
    }
    with context_of(small_recipe(folder, tables)) as made:
        yield made


@pytest.fixture(scope="module")
def policy(backend: Backend, context: Context) -> Policy:
    return backend.load(context.recipe, None, trainable=False)


@pytest.fixture(scope="module")
def rows(context: Context) -> list[Row]:
    prompts = Prompts.of(context.recipe, context.images)
    return [prompts.row(sample, answer=True) for sample in context.data.train]


def answers(backend: Backend, policy: Policy, rows: list[Row]) -> list[str]:
    return [group[0].text for group in backend.generate(policy, rows[:6], Sampling(12))]


def job_of(context: Context, stage: str, folder: Path) -> TrainingJob:
    prompts, samples = Prompts.of(context.recipe, context.images), context.data.train
    scorer = make_reward_scorer(prompts.task, recipe_rewards(context.recipe), samples, 4) if stage == "grpo" else None
    rows = prompts.rows(samples, answer=stage == "sft")
    return TrainingJob(context.recipe, rows, len(samples), folder / stage, scorer=scorer)


def test_generation_stops_at_the_chat_templates_end_of_turn(backend: Backend, policy: Policy, rows: list[Row]) -> None:
    prompt = Row(conversation("Describe the X-ray.", 1), rows[0].images)
    completion = backend.generate(policy, [prompt], Sampling(40))[0][0]
    assert not completion.truncated
    assert completion.tokens < 40
    assert "<end_of_turn>" not in completion.text


def test_a_completion_at_the_token_limit_is_truncated(backend: Backend, policy: Policy, rows: list[Row]) -> None:
    prompt = Row(conversation("Describe the X-ray.", 1), rows[0].images)
    completion = backend.generate(policy, [prompt], Sampling(2))[0][0]
    assert completion.truncated
    assert completion.tokens == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="in 16 bits, sums differ with the batch")
def test_completions_do_not_depend_on_other_rows_of_the_batch(
    backend: Backend, policy: Policy, rows: list[Row]
) -> None:
    prompts = [Row(row.messages, row.images) for row in rows[:5]]
    prompts.append(Row(conversation("Describe the X-ray.", 1), rows[0].images))
    together = [group[0].text for group in backend.generate(policy, prompts, Sampling(12))]
    alone = [backend.generate(policy, [row], Sampling(12))[0][0].text for row in prompts]
    assert together == alone


def test_image_tokens_cannot_be_generated(backend: Backend, policy: Policy, rows: list[Row]) -> None:
    """The image token gets the highest logit, so only the suppression prevents it."""
    image = policy.processor.tokenizer.image_token_id

    def prefer_image(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[..., image] += 1e4
        return output

    hook = policy.model.get_output_embeddings().register_forward_hook(prefer_image)
    try:
        prompt = [Row(rows[0].messages, rows[0].images)]
        sampled = backend.generate(policy, prompt, Sampling(8, temperature=1.0, count=4))[0]
        free = backend.generate(replace(policy, forbidden=()), prompt, Sampling(8))[0][0]
    finally:
        hook.remove()
    assert free.text.strip() == ""  # without suppression, all tokens are image tokens
    assert all(completion.text.strip() for completion in sampled)


@pytest.mark.parametrize("vision", [False, True])
def test_lora_adapts_the_recipes_layers(backend: Backend, tmp_path: Path, vision: bool) -> None:
    recipe = small_recipe(tmp_path, {"lora": {"vision": vision}})
    model = backend.load(recipe, None, trainable=True).model
    adapted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("language_model" in name for name in adapted)
    assert any("vision_tower" in name for name in adapted) is vision
    assert all("lora_" in name for name in adapted)


def test_an_unknown_target_layer_is_an_error_that_lists_the_known_ones(backend: Backend, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"lora": {"targets": ("q_proj", "w_pack")}})
    with raises(ModelError, "model.lora_target_unknown") as caught:
        backend.load(recipe, None, trainable=True)
    assert caught.problem.value == ["w_pack"]
    assert "q_proj" in caught.problem.remedy


def test_a_missing_model_is_named_in_the_error(backend: Backend, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"model": {"name": str(tmp_path / "nothing")}})
    with raises(ModelError, "model.not_found") as caught:
        backend.load(recipe, None, trainable=False)
    assert str(tmp_path / "nothing") in caught.problem.place


def test_a_saved_adapter_has_no_unfilled_model_card(backend: Backend, tmp_path: Path) -> None:
    backend.save(backend.load(small_recipe(tmp_path), None, trainable=True), tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "README.md" not in names


def test_images_reach_the_model(backend: Backend, policy: Policy, context: Context) -> None:
    assert check_images_used(backend, policy, Prompts.of(context.recipe, context.images), context.data.train)


@pytest.mark.slow
def test_an_answers_loss_falls_with_training_on_it(backend: Backend, context: Context, tmp_path: Path) -> None:
    trained = backend.load(context.recipe, None, trainable=True)
    rows = job_of(context, "sft", tmp_path).rows
    before = sum(backend.answer_loss(trained, rows(number)) for number in range(8))
    assert trained.model.training
    build_sft(backend, trained, job_of(context, "sft", tmp_path)).train()
    assert sum(backend.answer_loss(trained, rows(number)) for number in range(8)) < before


def test_an_answers_loss_is_minus_the_mean_of_its_tokens_log_probabilities(
    backend: Backend, policy: Policy, rows: list[Row]
) -> None:
    prompts = rows[:2]
    found = backend.log_probs(policy, prompts, [row.answer or "" for row in prompts])
    rounding = 0.05 if torch.cuda.is_available() else 1e-4
    for values, row in zip(found, prompts, strict=True):
        assert len(values) > 5
        assert sum(values) / len(values) == pytest.approx(-backend.answer_loss(policy, row), abs=rounding)


ROUNDING = 0.05 if torch.cuda.is_available() else 1e-4
RELATIVE = 2**-9 if torch.cuda.is_available() else 1e-6
"""Of a sum of log-probabilities: the unit roundoff of bfloat16, in which Unsloth's logits are. In float32, the sums of
the two tests below agree within 2e-8 of their value with Unsloth too."""
NAMES = {"one": "No acute finding", "two": "Pleural effusion", "three": "Pneumothorax", "short": "A"}


def test_log_probabilities_of_options_are_those_of_whole_answers(
    backend: Backend, policy: Policy, rows: list[Row]
) -> None:
    prompts = [Row(row.messages, row.images) for row in rows[:4]]
    prompts.append(Row(conversation("Describe the X-ray.", 1), rows[0].images))
    found = backend.choice_log_probs(policy, prompts, [[Decision(NAMES, ends=True)]] * len(prompts))
    for row, (values,) in zip(prompts, found, strict=True):
        whole = backend.log_probs(policy, [row] * len(NAMES), list(NAMES.values()))
        assert list(values) == list(NAMES)
        assert list(values.values()) == pytest.approx([sum(tokens) for tokens in whole], abs=ROUNDING, rel=RELATIVE)


def test_a_later_decision_continues_the_most_probable_option(backend: Backend, policy: Policy, rows: list[Row]) -> None:
    first = Decision({"yes": "Nodule: yes", "no": "Nodule: no"}, ends=False)
    second = Decision({"yes": "\nEffusion: yes", "no": "\nEffusion: no"}, ends=True)
    prompts = [Row(row.messages, row.images) for row in rows[:3]]
    found = backend.choice_log_probs(policy, prompts, [[first, second]] * len(prompts))
    for row, (one, two) in zip(prompts, found, strict=True):
        taken = first.options[max(one, key=lambda name: one[name])]
        whole = backend.log_probs(policy, [row] * 2, [taken + text for text in second.options.values()])
        assert list(two.values()) == pytest.approx([sum(tokens) for tokens in whole], abs=ROUNDING, rel=RELATIVE)
        start = backend.log_probs(policy, [row] * 2, list(first.options.values()))
        assert list(one.values()) == pytest.approx([sum(tokens[:-1]) for tokens in start], abs=ROUNDING, rel=RELATIVE)


def test_a_prompt_is_encoded_once_for_all_of_its_options(backend: Backend, policy: Policy, rows: list[Row]) -> None:
    """The vision tower sees each image once, in one pass for prompts of equal length."""
    base = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    seen: list[int] = []
    hook = base.model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    try:
        backend.choice_log_probs(policy, [Row(rows[0].messages, rows[0].images)] * 3, [[Decision(NAMES, True)]] * 3)
    finally:
        hook.remove()
    assert seen == [3]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_training_changes_only_the_adapter_which_reloads_identically(
    backend: Backend, context: Context, rows: list[Row], tmp_path: Path, stage: str
) -> None:
    from toolkit.training.grpo import build_grpo  # after the backend: Unsloth goes before trl
    from toolkit.training.sft import build_sft

    trained = backend.load(context.recipe, None, trainable=True)
    start = {name: value.detach().clone() for name, value in trained.model.named_parameters() if value.requires_grad}
    build = build_sft if stage == "sft" else build_grpo
    trainer = build(backend, trained, job_of(context, stage, tmp_path))
    trainer.train()
    now = dict(trained.model.named_parameters())
    assert all("lora_" in name for name in start)
    assert {now[name].dtype for name in start} == {torch.float32}  # 16 bits would round away GRPO's small updates
    assert any(not torch.equal(value, now[name]) for name, value in start.items())
    backend.save(trained, tmp_path / "adapter")
    again = backend.load(context.recipe, tmp_path / "adapter", trainable=False)
    assert answers(backend, again, rows) == answers(backend, trained, rows)


@pytest.mark.slow
def test_training_continues_from_an_adapter(backend: Backend, context: Context, tmp_path: Path) -> None:
    """GRPO after SFT trains the same adapter, not a second one on top of it."""
    first = backend.load(context.recipe, None, trainable=True)
    build_sft(backend, first, job_of(context, "sft", tmp_path)).train()
    backend.save(first, tmp_path / "adapter")
    kept = {name: value.detach().cpu().clone() for name, value in first.model.named_parameters() if value.requires_grad}
    second = backend.load(context.recipe, tmp_path / "adapter", trainable=True)
    found = {name: value.detach().cpu() for name, value in second.model.named_parameters() if value.requires_grad}
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert second.trained_from == tmp_path / "adapter"
    build_grpo(backend, second, job_of(context, "grpo", tmp_path))


@pytest.mark.slow
def test_a_checkpoint_is_restored(backend: Backend, context: Context, rows: list[Row], tmp_path: Path) -> None:
    trained = backend.load(context.recipe, None, trainable=True)
    backend.save(trained, tmp_path / "start")
    expected = answers(backend, trained, rows)
    build_sft(backend, trained, job_of(context, "sft", tmp_path)).train()
    backend.restore(trained, tmp_path / "start")
    assert answers(backend, trained, rows) == expected


@pytest.mark.slow
def test_merged_weights_are_safetensors_with_the_same_completions(
    backend: Backend, context: Context, rows: list[Row], tmp_path: Path
) -> None:
    trained = backend.load(context.recipe, None, trainable=True)
    build_sft(backend, trained, job_of(context, "sft", tmp_path)).train()
    backend.save(trained, tmp_path / "adapter")
    whole = backend.load(context.recipe, tmp_path / "adapter", trainable=False, mergeable=True)
    expected = answers(backend, whole, rows)
    backend.save_merged(whole, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    again = backend.load(context.recipe, tmp_path / "merged", trainable=False, mergeable=True)
    found = answers(backend, again, rows)
    # Merging into 16 bits rounds the weights, so completions must be equal in 32 bits only.
    assert found == expected if whole.bits == 32 else sum(a == b for a, b in zip(found, expected, strict=True)) >= 4


def test_trainers_have_the_recipes_settings(backend: Backend, context: Context, tmp_path: Path) -> None:
    from toolkit.training.grpo import build_grpo  # after the backend: Unsloth goes before trl
    from toolkit.training.sft import build_sft

    trained = backend.load(context.recipe, None, trainable=True)
    for stage in ("sft", "grpo"):
        build = build_sft if stage == "sft" else build_grpo
        trainer = build(backend, trained, job_of(context, stage, tmp_path))
        section = getattr(context.recipe, stage)
        assert trainer.args.learning_rate == section.learning_rate
        assert trainer.args.max_grad_norm == section.max_grad_norm
        assert trained.processor.tokenizer.padding_side == "left"


def test_grpo_needs_a_reward_scorer(backend: Backend, context: Context, tmp_path: Path) -> None:
    trained = backend.load(context.recipe, None, trainable=True)
    with raises(TrainingError, "training.reward_scorer_missing"):
        build_grpo(backend, trained, job_of(context, "sft", tmp_path))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("conversations")
    tables: Tables = {
        "data": {"task": "chat", "synthetic": {"kind": "chest_chat", "train": 24, "test": 4, "size": 64}},
        "sft": {"max_steps": 2},
        "grpo": {"max_steps": 1},
    }
    with context_of(small_recipe(folder, tables)) as made:
        yield made


@pytest.mark.slow
def test_sft_learns_the_first_answer_of_a_conversation_too(
    backend: Backend, conversations: Context, tmp_path: Path
) -> None:
    trained = backend.load(conversations.recipe, None, trainable=True)
    job = job_of(conversations, "sft", tmp_path)
    rows = [job.rows(number) for number in range(8)]
    firsts = [next(place for place, one in enumerate(row.messages) if one["role"] == "assistant") for row in rows]
    prompts = [
        Row(row.messages[:first], row.images[: _images(row.messages[:first])])
        for row, first in zip(rows, firsts, strict=True)
    ]
    texts = [row.messages[first]["content"][0]["text"] for row, first in zip(rows, firsts, strict=True)]
    before = sum(map(sum, backend.log_probs(trained, prompts, texts)))
    build_sft(backend, trained, job).train()
    assert sum(map(sum, backend.log_probs(trained, prompts, texts))) > before


@pytest.mark.slow
def test_grpo_generates_the_last_turn_after_all_turns_before(
    backend: Backend, conversations: Context, tmp_path: Path
) -> None:
    trained = backend.load(conversations.recipe, None, trainable=True)
    job = job_of(conversations, "grpo", tmp_path)
    trainer = build_grpo(backend, trained, job)
    read: list[list[int]] = []
    generate = trainer._generate_single_turn

    def record(prompt_ids: Any, *more: Any, **options: Any) -> Any:
        read.extend(list(map(int, ids)) for ids in prompt_ids)
        return generate(prompt_ids, *more, **options)

    trainer._generate_single_turn = record
    trainer.train()
    evaluated = [
        encode_prompts(trained, [job.rows(number)], "left")["input_ids"][0].tolist() for number in range(job.count)
    ]
    assert len(read) == 8  # 2 prompts x 4 generations
    assert all(ids in evaluated for ids in read)
    assert all(any(message["role"] == "assistant" for message in job.rows(n).messages) for n in range(job.count))


def _images(messages: list[Message]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])
