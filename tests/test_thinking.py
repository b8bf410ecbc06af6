"""The thinking switch of a chat template, and a generation prompt that opens a reasoning block."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.helpers.plans import codes, one_of, write_xrays
from tests.helpers.problems import raises
from toolkit import tiny
from toolkit.errors import ModelError
from toolkit.models.chat_template import find_turn_end, open_block, render_prompt, set_thinking
from toolkit.models.messages import conversation
from toolkit.pipeline.plan import plan_language_model
from toolkit.recipe import load_recipe
from toolkit.scoring.reasoning import NOT_CLOSED, without_reasoning
from toolkit.tasks import TASKS

OPENS = """{%- if add_generation_prompt -%}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- else -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}
"""
"""The end of Qwen3.5's template: it opens a block unless thinking is switched off."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a copy of the tiny model whose chat template opens a reasoning block."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, folder)
    with (folder / "chat_template.jinja").open("a") as file:
        file.write(OPENS)
    return folder


def prompt_of(processor: Any) -> str:
    return render_prompt(processor, conversation("Is there a mass?", 0))


def test_the_switch_closes_the_block_and_is_saved_with_the_processor(model: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(model)
    assert (prompt_of(processor)[-8:], open_block(processor)) == ("<think>\n", "<think>")
    set_thinking(processor, False)
    assert prompt_of(processor).endswith("<think>\n\n</think>\n\n")
    processor.save_pretrained(tmp_path / "saved")
    saved = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert (prompt_of(saved), open_block(saved)) == (prompt_of(processor), "")
    set_thinking(saved, False)
    assert prompt_of(saved) == prompt_of(processor)


def test_a_template_without_the_switch_is_unchanged_without_thinking_and_rejected_with_it() -> None:
    processor = AutoProcessor.from_pretrained(tiny.FOLDER)
    before = processor.chat_template
    set_thinking(processor, False)
    assert processor.chat_template == before
    with raises(ModelError, "model.chat_template_without_thinking_switch") as caught:
        set_thinking(processor, True)
    assert caught.problem.place == "prompt.thinking"


def test_a_template_that_always_reasons_needs_thinking(model: Path) -> None:
    processor = AutoProcessor.from_pretrained(model)
    processor.chat_template = processor.chat_template.replace("enable_thinking", "unknown_switch")
    with raises(ModelError, "model.reasoning_block_open") as caught:
        set_thinking(processor, False)
    assert caught.problem.value == "<think>"
    set_thinking(processor, True)
    assert prompt_of(processor).endswith("<think>\n")


def test_a_completion_without_a_closing_tag_has_no_answer(model: Path) -> None:
    processor = AutoProcessor.from_pretrained(model)
    set_thinking(processor, True)
    end = find_turn_end(processor)
    assert without_reasoning(end.completed("It is A, or")) == ("", NOT_CLOSED)
    assert without_reasoning(end.completed("A or B?</think>B")) == ("B", None)


@pytest.mark.slow
def test_the_plan_rejects_a_block_that_stays_open_and_answers_without_reasoning(model: Path, tmp_path: Path) -> None:
    xrays = write_xrays(tmp_path / "xrays")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[run]\nname = "r"\n[model]\nname = "{model}"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n[sft]\n'
    )

    def plan(*settings: str) -> Any:
        return plan_language_model(load_recipe(recipe, settings, tasks=TASKS), None)

    assert not plan().certain
    no_reasoning = plan("prompt.thinking=true")
    assert one_of(no_reasoning, "data.reasoning_missing").place == "prompt.thinking"
    assert no_reasoning.certain
    without_switch = plan("prompt.thinking=true", "model.name=tiny")
    assert "model.chat_template_without_thinking_switch" in codes(without_switch)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("enable_thinking", "unknown_switch"))
    assert one_of(plan(), "model.reasoning_block_open").place == "prompt.thinking"
    assert plan().certain
