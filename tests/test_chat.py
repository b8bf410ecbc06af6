"""Conversations: rows, the loss over all assistant turns, lengths, and learning."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.helpers.problems import raises
from tests.helpers.real_processors import unpack_processors
from tests.helpers.training import context_of
from toolkit import tiny
from toolkit.data.sample import Answer, Sample, Turn
from toolkit.errors import DataError, RowProblem
from toolkit.images import ImageStore
from toolkit.models import chat_template
from toolkit.models.backend import Policy, Row
from toolkit.models.collate import IGNORED, collate, encode_prompts
from toolkit.models.earlier_turns import earlier_turns, turn_headers
from toolkit.models.hf import HfBackend, make_policy
from toolkit.models.lengths import count_lengths
from toolkit.models.messages import conversation, messages_of
from toolkit.models.prompts import Prompts, set_image_key
from toolkit.recipe import Images, Model, Prompt, recipe_model
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.chat.schema import ChatSettings

CHAT = TASKS["chat"]
ROOT = Path("/data")
COLUMNS = {"messages": "messages", "image": "images"}
TWO_TURNS = [
    {"role": "user", "content": "<image>\nFindings:"},
    {"role": "assistant", "content": "Patchy opacity in the left lower zone."},
    {"role": "user", "content": "Which side?"},
    {"role": "assistant", "content": "Left side"},
]
TURNS = [
    Turn("system", "Answer briefly."),
    Turn("user", "X-ray of 2023: <image> and of 2024: <image> What changed?"),
    Turn("assistant", "The nodule grew."),
    Turn("user", "And here? <image>"),
    Turn("assistant", "No\n\nchange: 3.4 cm, Größe gleich."),
    Turn("user", "Which side?"),
]
ANSWERS = ["The nodule grew.", "No\n\nchange: 3.4 cm, Größe gleich.", "Left side"]
REAL = ("qwen2_vl", "qwen3_vl", "smolvlm_256m_idefics3")


def read(messages: Any, images: Any = ("x.png",), **settings: Any) -> Sample:
    row = {"messages": messages, "images": list(images)}
    return CHAT.read("r1", row, RowOrigin(ROOT / "rows.json", ROOT, COLUMNS, **settings))


def xrays(count: int) -> list[Image.Image]:
    return [set_image_key(Image.new("RGB", (64, 48), (80 * number, 0, 0)), str(number)) for number in range(count)]


def conversation_row() -> Row:
    return Row(messages_of(TURNS, 3), xrays(3), ANSWERS[-1])


def supervised(policy: Policy, batch: Mapping[str, torch.Tensor], number: int) -> list[str]:
    """Return the text of each supervised span of a row."""
    ids, labels = batch["input_ids"][number].tolist(), batch["labels"][number].tolist()
    shown = chat_template.show_supervised(policy.processor, ids, labels)
    return [part.partition("⟧")[0] for part in shown.split("⟦")[1:]]


@pytest.fixture(scope="module")
def gemma() -> Policy:
    return make_policy(None, AutoProcessor.from_pretrained(tiny.FOLDER), None)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    folder = unpack_processors(shared_data, tmp_path_factory.mktemp("processors")) / "processors"
    return {name: make_policy(None, AutoProcessor.from_pretrained(folder / name), None) for name in REAL}


def test_a_conversation_becomes_turns_and_a_last_answer() -> None:
    found = read(TWO_TURNS)
    assert [turn.role for turn in CHAT.turns(found)] == ["user", "assistant", "user"] if CHAT.turns else False
    assert (CHAT.question(found), CHAT.target(found), CHAT.instruction(found)) == ("Which side?", "Left side", "")
    assert found.reference == {"answer": "Left side"}


def test_rows_of_llava_have_other_names_and_the_same_turns() -> None:
    names = {"user": "human", "assistant": "gpt"}
    llava = [{"from": names[one["role"]], "value": one["content"]} for one in TWO_TURNS]
    assert read(llava).fields == read(TWO_TURNS).fields
    assert read(json.dumps(TWO_TURNS)).fields == read(TWO_TURNS).fields


def test_a_conversation_may_have_no_image() -> None:
    found = read([{"role": "user", "content": "What is an effusion?"}, {"role": "assistant", "content": "Fluid."}], [])
    assert found.images == ()
    assert found.group


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (None, "tasks.chat.messages_missing"),
        ("Who is it?", "tasks.chat.messages_missing"),
        ([], "tasks.chat.messages_missing"),
        (["Who is it?"], "tasks.chat.messages_missing"),
        (TWO_TURNS[:3], "tasks.chat.no_last_answer"),
        ([{"role": "system", "content": "Be brief."}], "tasks.chat.no_last_answer"),
        (TWO_TURNS[1:], "tasks.chat.roles_not_alternating"),
        ([TWO_TURNS[0], *TWO_TURNS], "tasks.chat.roles_not_alternating"),
        ([*TWO_TURNS, {"role": "system", "content": "Be brief."}], "tasks.chat.system_not_first"),
        ([{"role": "tool", "content": "x"}, *TWO_TURNS], "tasks.chat.role_unknown"),
        ([{"role": ["user"], "content": "x"}], "tasks.chat.role_unknown"),
        ([{"content": "x"}], "tasks.chat.role_unknown"),
        ([TWO_TURNS[0], {"role": "assistant", "content": " "}], "tasks.chat.turn_empty"),
        ([TWO_TURNS[0], {"role": "assistant", "content": 3}], "tasks.chat.turn_empty"),
        ([TWO_TURNS[0], {"role": "assistant", "content": None}], "tasks.chat.turn_empty"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_rejected_with_its_reason(messages: Any, code: str) -> None:
    with raises(RowProblem, code):
        read(messages)


def test_a_row_and_the_recipe_cannot_both_have_a_system_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *TWO_TURNS]
    assert read(messages, settings=ChatSettings()).fields["turns"][0] == ("system", "Be brief.")
    with raises(RowProblem, "tasks.chat.two_system_prompts"):
        read(messages, settings=ChatSettings(has_system=True))


def test_the_loss_covers_all_assistant_turns_of_the_tiny_model_and_nothing_else(gemma: Policy) -> None:
    batch = collate(gemma, [conversation_row(), Row(conversation("What?", 1), xrays(1), "Yes")])
    assert supervised(gemma, batch, 0) == [f"{answer}<end_of_turn>" for answer in ANSWERS]
    assert supervised(gemma, batch, 1) == ["Yes<end_of_turn>"]
    labels, ids = batch["labels"], batch["input_ids"]
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_loss_covers_all_assistant_turns_of_real_processors(real: dict[str, Policy], name: str) -> None:
    policy = real[name]
    batch = collate(policy, [conversation_row(), Row(conversation("What?", 1), xrays(1), "Yes")])
    assert supervised(policy, batch, 0) == [f"{answer}{policy.turn_end.text}" for answer in ANSWERS]
    assert supervised(policy, batch, 1) == [f"Yes{policy.turn_end.text}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_training_and_generation_read_the_same_conversation(gemma: Policy, real: dict[str, Policy], name: str) -> None:
    policy = gemma if name == "tiny" else real[name]
    prompt = encode_prompts(policy, [conversation_row()], "right")["input_ids"][0].tolist()
    trained = collate(policy, [conversation_row()])["input_ids"][0].tolist()
    shown, header = turn_headers(policy.processor, policy.turn_end)
    # SmolVLM's template has a blank before an earlier answer, which generation does not have.
    assert shown == (f"{header} " if name.startswith("smolvlm") else header)
    assert (trained[: len(prompt)] == prompt) == (shown == header)


def test_only_the_last_answer_counts_in_the_loss_of_an_answer(gemma: Policy) -> None:
    batch = collate(gemma, [conversation_row()], earlier=False)
    assert supervised(gemma, batch, 0) == ["Left side<end_of_turn>"]


def test_the_labels_of_one_turn_are_unchanged_by_the_turns_before(gemma: Policy) -> None:
    alone = collate(gemma, [Row(conversation("Which side?", 0), [], "Left side")])["labels"][0]
    together = collate(gemma, [conversation_row()])["labels"][0]
    answer = alone[alone != IGNORED]
    assert together[-len(answer) :].tolist() == answer.tolist()


class Thinking:
    """The tiny model's processor with a template that removes the reasoning of earlier answers, as Qwen3's does.

    ``skipped`` is the empty reasoning block with which its generation prompt ends.
    """

    def __init__(self, processor: Any, skipped: str = "") -> None:
        self.tokenizer, self._processor, self._skipped = processor.tokenizer, processor, skipped

    def __call__(self, **options: Any) -> Any:
        return self._processor(**options)

    def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
        kept = [
            {**message, "content": [{"type": "text", "text": message["content"][0]["text"].split("</think>")[-1]}]}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]
        text = str(self._processor.apply_chat_template(kept, **options))
        return text + self._skipped if options.get("add_generation_prompt") else text


def test_a_template_that_removes_reasoning_from_earlier_turns_is_an_error(gemma: Policy) -> None:
    turns = (Turn("user", "What?"), Turn("assistant", "<think>Dense.</think>Fluid."), Turn("user", "Where?"))
    with raises(DataError, "data.turn_changed_by_template") as caught:
        earlier_turns(Thinking(gemma.processor), messages_of(turns, 0), gemma.turn_end, "r1")
    assert (caught.problem.place, "Dense" in str(caught.error)) == ("r1", False)
    kept = (turns[0], Turn("assistant", "Fluid."), turns[2])
    found = earlier_turns(Thinking(gemma.processor), messages_of(kept, 0), gemma.turn_end)
    assert [turn.answer for turn in found] == ["Fluid."]


def test_every_turn_is_learned_after_the_text_that_precedes_a_generated_answer(gemma: Policy) -> None:
    policy = replace(gemma, processor=Thinking(gemma.processor, "<think></think>"))
    turns = (Turn("user", "What?"), Turn("assistant", "Fluid."), Turn("user", "Where?"))
    assert turn_headers(policy.processor, policy.turn_end) == ("model\n", "model\n<think></think>")
    batch = collate(policy, [Row(messages_of(turns, 0), [], "Left.")])
    assert supervised(policy, batch, 0) == ["Fluid.<end_of_turn>", "Left.<end_of_turn>"]
    text = policy.processor.tokenizer.decode(batch["input_ids"][0])
    assert text.count("<think></think>") == 2


def test_lengths_count_all_turns_exactly(gemma: Policy, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png")
    row = {"messages": TWO_TURNS, "images": ["x.png"]}
    sample = CHAT.read("r1", row, RowOrigin(tmp_path / "rows.json", tmp_path, COLUMNS))
    prompts = Prompts(CHAT, Prompt(), ImageStore.from_recipe(Images(), Model()))
    (length,) = count_lengths(gemma.processor, prompts, [sample], 2048).lengths
    batch = collate(gemma, [prompts.row(sample, answer=True)])
    assert length.total == len(batch["input_ids"][0])
    assert length.earlier + length.answer == int((batch["labels"][0] != IGNORED).sum())


def test_the_baseline_is_the_most_frequent_last_answer() -> None:
    samples = [read([TWO_TURNS[0], {"role": "assistant", "content": text}]) for text in ("left", "Right.", "right")]
    complete = CHAT.baseline(samples)
    assert complete(samples[0]) == "Right."
    assert CHAT.scores(samples[2], CHAT.parse(complete(samples[2]), samples[2]))["exact_match"] == 1


def test_scores_of_an_empty_completion_are_zero() -> None:
    sample = read(TWO_TURNS)
    answer = CHAT.parse(" \n", sample)
    assert answer.problem is not None
    assert CHAT.scores(sample, answer) == {"token_f1": 0.0, "exact_match": 0.0, "length": 0.0}
    assert CHAT.scores(sample, Answer("", {"text": "left side."}))["exact_match"] == 1


@pytest.mark.slow
def test_the_tiny_model_learns_conversations(tmp_path: Path) -> None:
    from toolkit.evaluation.evaluate import evaluate
    from toolkit.training.sft import train_sft

    settings = {
        "run": {"name": "chat", "folder": tmp_path},
        "model": {"name": "tiny", "max_tokens": 256},
        "lora": {"vision": True},
        "data": {"task": "chat", "synthetic": {"kind": "chest_chat", "train": 160, "test": 48, "size": 112}},
        "images": {"max_side": 112},
        "sft": {"learning_rate": 2e-3, "max_steps": 12, "batch_size": 16, "accumulation": 1,
                "gradient_checkpointing": False},
        "evaluate": {"batch_size": 48, "max_completion_tokens": 24, "bootstrap": 200},
    }  # fmt: skip
    with context_of(recipe_model(TASKS).model_validate(settings)) as context:
        train_sft(context)
        result = evaluate(context, "sft", context.run.stage_folder("sft") / "weights", (), HfBackend())
    difference = result.primary.differences["baseline"].difference
    assert difference.low is not None
    assert difference.low > 0, difference
