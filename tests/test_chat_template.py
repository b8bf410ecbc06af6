"""Chat templates: end of turn, image tokens, BOS and token counts, for the tiny model and real processors."""

import copy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.helpers.problems import raises
from tests.helpers.real_processors import unpack_processors
from toolkit import tiny
from toolkit.errors import ModelError
from toolkit.models import chat_template
from toolkit.models.image_tokens import count_tokens, find_image_ids
from toolkit.models.messages import conversation

REAL = {"qwen2_vl": "<|im_end|>", "qwen3_vl": "<|im_end|>", "smolvlm_256m_idefics3": "<end_of_utterance>"}


@pytest.fixture(scope="module")
def gemma() -> Any:
    return AutoProcessor.from_pretrained(tiny.FOLDER)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processors")
    unpack_processors(shared_data, folder)
    return {name: AutoProcessor.from_pretrained(folder / "processors" / name) for name in REAL}


def test_gemmas_end_of_turn_differs_from_the_tokenizers_eos(gemma: Any) -> None:
    end = chat_template.find_turn_end(gemma)
    assert end.text == "<end_of_turn>"
    assert gemma.tokenizer.eos_token == "<eos>"
    assert end.id != gemma.tokenizer.eos_token_id


@pytest.mark.slow
def test_real_processors_have_the_end_of_turn_of_their_templates(real: dict[str, Any]) -> None:
    assert {name: chat_template.find_turn_end(processor).text for name, processor in real.items()} == REAL


def test_a_template_without_an_end_of_turn_needs_a_tokenizer_with_an_eos(gemma: Any) -> None:
    class NoEnd:
        tokenizer = copy.deepcopy(gemma.tokenizer)

        def apply_chat_template(self, messages: list[Any], **_: Any) -> str:
            return "user: question model: SENTINEL and then nothing"

    processor = NoEnd()
    assert chat_template.find_turn_end(processor).text == "<eos>"
    processor.tokenizer.eos_token = None
    with raises(ModelError, "model.chat_template_without_turn_end") as caught:
        chat_template.find_turn_end(processor)
    assert caught.problem.value == " and then nothing"


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("{{ lipsum.__globals__['os'] }}", "unsafe"),
        ("{{ 'a' * 9999999999 }}", "256 MB of memory"),
        ("{{ 'a' * 2000000 }}", "1,000,000 characters"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
    ],
)
def test_a_template_that_fails_or_allocates_is_rejected_under_limits(template: str, value: str) -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    processor.chat_template = template
    with raises(ModelError, "model.chat_template_fails") as caught:
        chat_template.find_turn_end(processor)
    assert value in str(caught.problem.value)
    assert str(tiny.FOLDER) in caught.problem.place


def test_a_template_without_an_end_is_stopped() -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "ijkl")
    processor.chat_template = loops + "{% endfor %}" * 4
    with raises(ModelError, "model.chat_template_fails") as caught:
        chat_template.find_turn_end(processor)
    assert "5 s of CPU time" in str(caught.problem.value)


def test_a_template_that_rejects_a_system_turn_names_the_turns(gemma: Any) -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    reject = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    processor.chat_template = reject + processor.chat_template
    question = conversation("What is shown?", 1)
    assert chat_template.render_prompt(processor, question) == chat_template.render_prompt(gemma, question)
    with raises(ModelError, "model.chat_template_fails") as caught:
        chat_template.render_prompt(processor, conversation("What is shown?", 1, "Be brief."))
    assert caught.problem.value == "System role not supported, for the turns system, user"


@pytest.mark.parametrize("template", [None, "", {"tool_use": "{{ messages }}"}])
def test_a_model_without_a_template_is_rejected(template: Any) -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    processor.chat_template = template
    with raises(ModelError, "model.chat_template_missing"):
        chat_template.find_turn_end(processor)


def test_a_prompt_begins_with_one_bos_only(gemma: Any) -> None:
    text = chat_template.render_prompt(gemma, conversation("What is shown?", 1))
    ids = gemma(
        text=[text], images=[[Image.new("RGB", (9, 9))]], add_special_tokens=chat_template.adds_bos(gemma, text)
    )["input_ids"][0]
    assert list(ids).count(gemma.tokenizer.bos_token_id) == 1
    assert ids[0] == gemma.tokenizer.bos_token_id


def test_a_system_prompt_precedes_the_question(gemma: Any) -> None:
    text = chat_template.render_prompt(gemma, conversation("What?", 0, system="Be brief."))
    assert text.index("Be brief.") < text.index("What?")


@pytest.mark.parametrize("images", [1, 2, 3])
def test_placeholders_are_at_the_positions_of_images(gemma: Any, images: int) -> None:
    text = chat_template.render_prompt(gemma, conversation("Compare.", images))
    assert text.count("<start_of_image>") == images
    assert text.index("<start_of_image>") < text.index("Compare.")


@pytest.mark.parametrize("sizes", [[(112, 112)], [(300, 200), (64, 512)]])
def test_token_counts_equal_those_of_the_tiny_models_processor(gemma: Any, sizes: list[tuple[int, int]]) -> None:
    _same_count(gemma, sizes)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("sizes", [[(300, 200)], [(800, 1000)], [(300, 200), (640, 480)]])
def test_token_counts_equal_those_of_real_processors(
    real: dict[str, Any], name: str, sizes: list[tuple[int, int]]
) -> None:
    _same_count(real[name], sizes)


def test_image_tokens_are_all_found(gemma: Any, real: dict[str, Any]) -> None:
    tiny_tokens = gemma.tokenizer.convert_ids_to_tokens(find_image_ids(gemma))
    assert {"<start_of_image>", "<image_soft_token>", "<end_of_image>"} <= set(tiny_tokens)
    qwen = real["qwen3_vl"]
    found = qwen.tokenizer.convert_ids_to_tokens(find_image_ids(qwen))
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"} <= set(found)


def test_the_supervised_part_is_shown_between_brackets(gemma: Any) -> None:
    head = gemma.tokenizer("What?", add_special_tokens=False)["input_ids"]
    tail = chat_template.encode_answer(gemma, "Yes", chat_template.find_turn_end(gemma))
    shown = chat_template.show_supervised(gemma, head + tail, [-100] * len(head) + tail)
    assert shown == "What?⟦Yes<end_of_turn>⟧"


def _same_count(processor: Any, sizes: list[tuple[int, int]]) -> None:
    text = chat_template.render_prompt(processor, conversation("Compare.", len(sizes)))
    images = [Image.new("RGB", size) for size in sizes]
    made = processor(text=[text], images=[images], add_special_tokens=chat_template.adds_bos(processor, text))[
        "input_ids"
    ][0]
    counted = count_tokens(processor, text, sizes, answer=[1, 2, 3])
    assert counted.total == len(made) + 3
