"""Placeholders of images in prompts: their order, mismatches, and prompts without any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.helpers.problems import raises
from toolkit import tiny
from toolkit.data.placeholders import place_images, split_at_images
from toolkit.data.sample import Sample, Turn
from toolkit.errors import DataError, RowProblem
from toolkit.images import ImageStore
from toolkit.images.ref import ImageRef
from toolkit.models import chat_template
from toolkit.models.messages import Message, messages_of
from toolkit.models.prompts import Prompts, check_no_special_tokens, prompt_texts, special_tokens
from toolkit.recipe import Images, Model, Prompt
from toolkit.tasks import TASKS

VQA = TASKS["vqa"]
REFS = tuple(ImageRef(Path(f"/data/{name}.png")) for name in "abc")


def sample(question: str, images: int = 2, **fields: Any) -> Sample:
    return Sample("r1", "vqa", "g", REFS[:images], {"question": question, "answer_type": "open", **fields}, {})


def prompts(**prompt: Any) -> Prompts:
    return Prompts(VQA, Prompt(**prompt), ImageStore.from_recipe(Images(), Model()))


def names(placed: Sample) -> list[str]:
    return [ref.path.stem for ref in placed.images]


def kinds(messages: list[Message]) -> list[str]:
    return [part.get("text", "IMAGE") for message in messages for part in message["content"]]


@pytest.mark.parametrize(
    ("question", "order"),
    [
        ("What is shown?", ["a", "b"]),
        ("Study of 2023-01-04: <image> Study of 2024-02-01: <image> What changed?", ["a", "b"]),
        ("<image 2> is earlier than <image 1>.", ["b", "a"]),
        ("Compare <image 1> with <image 2>. Is <image 1> normal?", ["a", "b", "a"]),
        ("Is a tag such as <imaging> kept?", ["a", "b"]),
    ],
)
def test_images_are_in_the_order_of_their_placeholders(question: str, order: list[str]) -> None:
    assert names(place_images(VQA, sample(question))) == order


@pytest.mark.parametrize(
    ("question", "images", "code"),
    [
        ("<IMAGE> What is shown?", 1, "data.placeholder_unknown"),
        ("<Image> What is shown?", 1, "data.placeholder_unknown"),
        ("<img>a.png</img> What is shown?", 1, "data.placeholder_unknown"),
        ("<image_1> What is shown?", 1, "data.placeholder_unknown"),
        ("<image> What is shown?", 2, "data.image_placeholders_mismatch"),
        ("<image> and <image>", 1, "data.image_placeholders_mismatch"),
        ("<image>", 0, "data.image_placeholders_mismatch"),
        ("<image 1> and <image 3>", 2, "data.image_placeholders_mismatch"),
        ("<image 2>", 2, "data.image_placeholders_mismatch"),
        ("<image 0> and <image 1>", 2, "data.image_placeholders_mismatch"),
        ("<image 1> and <image>", 2, "data.image_placeholders_mixed"),
    ],
)
def test_placeholders_that_do_not_match_the_images_are_a_problem_of_the_row(
    question: str, images: int, code: str
) -> None:
    with raises(RowProblem, code) as caught:
        place_images(VQA, sample(question, images))
    assert str(caught.problem.value).lower().startswith(("<image", "<img"))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("See <image>.", "data.image_outside_user_turn"),
        ("See <image 2>.", "data.image_outside_user_turn"),
        ("See <|image_pad|>.", "data.placeholder_unknown"),
        ("<bbox>", "data.placeholder_not_read"),
    ],
)
def test_a_placeholder_in_an_answer_is_a_problem_of_the_row(answer: str, code: str) -> None:
    with raises(RowProblem, code):
        place_images(VQA, replace(sample("What is shown?"), reference={"answer": answer}))


def test_tags_around_a_box_are_text() -> None:
    answer = replace(sample("Where?"), reference={"answer": "mass <bbox>[1, 2, 3, 4]</bbox>"})
    assert place_images(VQA, answer) is answer


def test_placeholders_in_options_and_context_count_too() -> None:
    fields = {"question": "Which?", "options": {"A": "<image 2>", "B": "<image 1>"}, "Comparison": "<image 3>"}
    mcq = Sample("r1", "mcq", "g", REFS, fields, {})
    assert names(place_images(TASKS["mcq"], mcq, ["Comparison"])) == ["c", "b", "a"]
    with raises(RowProblem, "data.image_placeholders_mismatch"):
        place_images(TASKS["mcq"], mcq)


def test_images_are_interleaved_with_the_text_of_the_prompt() -> None:
    placed = place_images(VQA, sample("2023: <image> 2024: <image 2>".replace(" 2>", ">")))
    assert kinds(prompts(instruction="Compare.").messages(placed)) == [
        "2023: ",
        "IMAGE",
        " 2024: ",
        "IMAGE",
        "\nCompare.",
    ]


def test_without_placeholders_the_messages_are_those_of_a_plain_question() -> None:
    found = prompts(instruction="Be brief.", system="You read X-rays.", context=("Age",))
    messages = found.messages(sample("What is shown?", Age="63"))
    text = "Age: 63\nWhat is shown?\nBe brief."
    images = [{"type": "image"}, {"type": "image"}]
    assert messages == [
        {"role": "system", "content": [{"type": "text", "text": "You read X-rays."}]},
        {"role": "user", "content": [*images, {"type": "text", "text": text}]},
    ]
    assert found.text(sample("What is shown?", Age="63")) == text


def test_a_split_text_joins_to_the_original() -> None:
    text = "<image>\nWhat changed since <image 12>?<image>"
    parts = list(split_at_images(text))
    assert parts == [None, "\nWhat changed since ", None, "?", None]
    assert list(split_at_images("plain")) == ["plain"]


def test_the_tiny_processor_puts_image_tokens_where_the_placeholders_are() -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    placed = place_images(VQA, sample("First: <image> second: <image> What changed?"))
    text = chat_template.render_prompt(processor, prompts(instruction="").messages(placed))
    images = [[Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32))]]
    ids = processor(text=[text], images=images, add_special_tokens=False)["input_ids"][0]
    pieces = processor.tokenizer.decode(ids).replace("<image_soft_token>", "").split("<start_of_image>")
    assert [piece.split("<end_of_image>")[-1].strip() for piece in pieces[1:]] == [
        "second:",
        "What changed?<end_of_turn>\n<start_of_turn>model",
    ]
    assert "First:" in pieces[0]


def test_a_placeholder_is_no_special_token_but_another_one_still_is() -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    special = special_tokens(processor)
    check_no_special_tokens(prompt_texts(sample("<image> <image>"), prompts(), with_answer=False), special, "r1")
    with raises(DataError, "data.special_token_in_text"):
        texts = prompt_texts(sample("<image> <start_of_image>"), prompts(), with_answer=False)
        check_no_special_tokens(texts, special, "r1")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([Turn("user", "What?")], ["IMAGE", "IMAGE", "What?"]),
        ([Turn("system", "Be brief."), Turn("user", "What?"), Turn("assistant", "Air."), Turn("user", "Where?")],
         ["Be brief.", "IMAGE", "IMAGE", "What?", "Air.", "Where?"]),
        ([Turn("user", "<image>A?"), Turn("assistant", "Air."), Turn("user", "And <image>?")],
         ["IMAGE", "A?", "Air.", "And ", "IMAGE", "?"]),
    ],
)  # fmt: skip
def test_images_of_a_conversation_are_in_their_turns(turns: list[Turn], expected: list[str]) -> None:
    assert kinds(messages_of(turns, 2)) == expected
