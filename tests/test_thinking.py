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
from toolkit.models.chat_template import conversation, open_block, render_prompt, set_thinking
from toolkit.pipeline.plan import plan_language_model
from toolkit.recipe import load_recipe
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
    set_thinking(saved, None)
    assert prompt_of(saved) == prompt_of(processor)


def test_a_template_without_the_switch_is_rejected() -> None:
    with raises(ModelError, "model.chat_template_without_thinking_switch") as caught:
        set_thinking(AutoProcessor.from_pretrained(tiny.FOLDER), False)
    assert caught.problem.place == "prompt.thinking"


@pytest.mark.slow
def test_the_plan_warns_about_a_block_that_the_answers_do_not_close(model: Path, tmp_path: Path) -> None:
    xrays = write_xrays(tmp_path / "xrays")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[run]\nname = "r"\n[model]\nname = "{model}"\n[data]\ntask = "mcq"\ntrain = "{xrays}/train.json"\n[sft]\n'
    )

    def plan(*settings: str) -> Any:
        return plan_language_model(load_recipe(recipe, settings, tasks=TASKS), None)

    assert one_of(plan(), "plan.reasoning_block_open").place == "[prompt] thinking"
    assert "plan.reasoning_block_open" not in codes(plan("prompt.thinking=false"))
    without_switch = plan("prompt.thinking=false", "model.name=tiny")
    assert "model.chat_template_without_thinking_switch" in codes(without_switch)
