"""Check of a chat template: it renders a short conversation under limits, in another process.

Input and limits are those of ``toolkit.models.template_trial``.
"""

import json
import signal
import subprocess
import sys
from functools import cache, lru_cache
from typing import Any

from toolkit import tiny
from toolkit.errors import ModelError, warn
from toolkit.models import template_trial
from toolkit.models.messages import SENTINEL, conversation

_TIMEOUT = 120.0
"""Most seconds of a trial of a chat template, for systems that cannot limit CPU time, and very busy ones."""


def check_template(processor: Any) -> None:
    """Render a short conversation with the chat template under limits, in another process, once for each template.

    Raises:
        ModelError: The chat template is missing, fails, or exceeds the limits of ``template_trial``.
    """
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise ModelError(
            "model.chat_template_missing",
            "the model must have a chat template",
            place=template_place(processor),
            value=template,
            remedy="Use the instruction-tuned version of the model, or set prompt.chat_template to a Jinja file.",
        )
    if template == _own_template():
        return
    reason = _trial(template, json.dumps(processor.tokenizer.special_tokens_map, default=str))
    if reason:
        raise template_error(processor, reason)


@cache
def _own_template() -> str:
    """Return the template of the tiny model, which ships with this package and needs no trial."""
    return (tiny.FOLDER / "chat_template.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=32)
def _trial(template: str, variables: str) -> str:
    """Return why a chat template fails for a short conversation, or an empty text."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": SENTINEL}]}
    calls = [
        {"messages": conversation("question", 1), "add_generation_prompt": True},
        {"messages": [*conversation("question", 0), answer], "add_generation_prompt": False},
    ]
    job = json.dumps({"template": template, "variables": json.loads(variables), "calls": calls})
    # With -P, files of this package and of the working directory cannot shadow a library.
    command = [sys.executable, "-P", template_trial.__file__]
    try:
        done = subprocess.run(command, input=job, capture_output=True, encoding="utf-8", timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {_TIMEOUT:.0f} s for a short prompt"
    started, _, reason = done.stdout.partition("\n")
    if started != template_trial.READY:
        rule = "the chat template was not tried under limits, because the process that renders it did not start"
        warn("model.chat_template_not_tried", rule, value=done.stderr.strip()[-200:])
        return ""
    if done.returncode in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 0)) and done.returncode:
        return f"no end within {template_trial.SECONDS} s of CPU time for a short prompt"
    return reason if done.returncode == 0 else f"the renderer ended with code {done.returncode} for a short prompt"


def template_error(processor: Any, reason: str) -> ModelError:
    """Return the error for a chat template that does not render a conversation."""
    return ModelError(
        "model.chat_template_fails",
        "the chat template must render the conversation",
        place=template_place(processor),
        value=reason,
        remedy="Restore the chat template of the model's authors, or remove the turns that it rejects.",
    )


def template_place(processor: Any) -> str:
    """Return the place of errors of a chat template."""
    return f"chat template of {getattr(processor.tokenizer, 'name_or_path', '') or 'the processor'}"
