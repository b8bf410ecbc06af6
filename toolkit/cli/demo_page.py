"""The page of `toolkit demo`: a form, and the answer as HTML. It is imported after Gradio's settings are made.

Everything that a model, a row or a file name has in it is escaped. Images are inside the page, so that Gradio stores no
file of an answer.
"""

import base64
import html
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr  # type: ignore[import-not-found, unused-ignore]
from PIL import Image

from toolkit.data.sample import Answer, Sample
from toolkit.errors import DataError, Problem, RunError, ToolkitError
from toolkit.evaluation.drawing import draw_shapes
from toolkit.evaluation.predictor import Predictor

NOTICE = (
    "Research use only. This is not a medical device. Answers can be wrong and must not be used for diagnosis or "
    "treatment."
)

WAITING = 8
"""Questions that may wait for the model. It answers one at a time."""

FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
"""Fonts of the browser. Gradio's default loads fonts from another server."""

_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "{}$`\\"}
"""Characters that Gradio's templates would interpret."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """The agent memory between two GUI steps. Empty for a task without agent memory."""

    short: Mapping[str, Any] = field(default_factory=dict)
    long: Mapping[str, Any] = field(default_factory=dict)


def build_page(predictor: Predictor, name: str, delete_cache: tuple[int, int]) -> Any:
    """Return the page of a model.

    Args:
        predictor: the loaded model.
        name: the name of the run.
        delete_cache: seconds between two deletions of uploaded files, and their age in seconds.
    """
    task, most = predictor.task, _most_images(predictor)
    with gr.Blocks(title=f"toolkit demo: {name}", analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.HTML(f"<h1>{escape(name)}</h1><p>{escape(task.description)}</p><p role='note'><b>{escape(NOTICE)}</b></p>")
        memory = gr.State(Memory())
        with gr.Row():
            with gr.Column():
                files = gr.File(
                    label="Image (PNG, JPEG, TIFF, DICOM, …)" if most == 1 else f"Images in order, at most {most}",
                    file_count="single" if most == 1 else "multiple",
                    elem_id="images",
                )
                question = gr.Textbox(label=_question_label(predictor), lines=3, elem_id="question")
                options = gr.Textbox(
                    label="Options, one per line", lines=4, visible=task.takes_options, elem_id="options"
                )
                context = [gr.Textbox(label=column) for column in predictor.recipe.prompt.context]
                submit = gr.Button("Answer", variant="primary", elem_id="submit")
                restart = gr.Button("New episode", visible=task.has_agent_memory, elem_id="restart")
            output = gr.HTML(elem_id="answer")

        def answer(memory: Memory, files: Any, *texts: str | None) -> tuple[str, Memory]:
            question, options, *others = (text or "" for text in texts)  # a hidden field gives None
            names = predictor.recipe.prompt.context
            given = {column: text for column, text in zip(names, others, strict=True) if text}
            entered = Entered(_paths(files), question.strip(), _lines(options), given, memory)
            return answer_question(predictor, entered)

        private = {"api_visibility": "private", "concurrency_limit": 1}
        submit.click(answer, [memory, files, question, options, *context], [output, memory], **private)
        restart.click(lambda: ("", Memory()), None, [output, memory], **private)
    return page


def serve(page: Any, host: str, port: int | None, upload_mb: int) -> str:
    """Serve the page in a thread, and return its address.

    Raises:
        RunError: the port is taken, or the address is not one of this machine.
    """
    page.queue(max_size=WAITING, api_open=False)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=f"{upload_mb}mb",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        )
    except (OSError, ValueError) as error:
        rule, remedy = "it must be possible to listen on the address", "Choose another --port, or leave it out."
        place = f"--host {host}" + ("" if port is None else f" --port {port}")
        raise RunError("demo.address_not_available", rule, place=place, value=str(error), remedy=remedy) from error
    return str(url)


@dataclass(frozen=True, slots=True)
class Entered:
    """What a user entered: image files, question (empty: that of the task), options, context, and agent memory."""

    files: Sequence[Path]
    question: str
    options: Sequence[str] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    memory: Memory = Memory()


def answer_question(predictor: Predictor, entered: Entered) -> tuple[str, Memory]:
    """Return the answer as HTML, and the agent memory after it. An error that the user can correct is HTML too."""
    try:
        sample = _sample(predictor, entered)
        answer = predictor.answer(sample)
        memory = Memory(*predictor.memory_after(sample, answer)) if predictor.task.has_agent_memory else Memory()
        return answer_html(_images(predictor, sample, answer), answer, memory), memory
    except ToolkitError as error:
        return "".join(map(_problem_html, error.problems)), entered.memory


def _sample(predictor: Predictor, entered: Entered) -> Sample:
    most = _most_images(predictor)
    if len(entered.files) > most:
        rule, remedy = f"a question may have at most {most}", "Remove the others."
        raise DataError("demo.too_many_images", rule, place="images", value=len(entered.files), remedy=remedy)
    if not entered.files and (predictor.task.needs_image or predictor.task.has_agent_memory):
        raise DataError("demo.image_missing", "must have an image", place="images", remedy="Upload one.")
    if predictor.task.has_agent_memory:
        memory = entered.memory
        return predictor.step_sample(entered.files[0], entered.question, memory.short, memory.long, entered.context)
    return predictor.question_sample(entered.question or None, entered.files, entered.options, entered.context)


def _most_images(predictor: Predictor) -> int:
    return 1 if predictor.task.has_agent_memory else predictor.recipe.images.max_per_question


def _question_label(predictor: Predictor) -> str:
    if predictor.task.has_agent_memory:
        return "Goal"
    return "Question (empty: the question of the training)" if _has_own_question(predictor) else "Question"


def _has_own_question(predictor: Predictor) -> bool:
    return not any("question" in one.split("|") for one in predictor.task.required)


def _paths(files: Any) -> list[Path]:
    """Return the uploaded files. Gradio gives nothing, one, or a list."""
    if not files:
        return []
    return [Path(str(file)) for file in (files if isinstance(files, list) else [files])]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _images(predictor: Predictor, sample: Sample, answer: Answer) -> list[Image.Image]:
    """Return the images as the model saw them. The first one has the shapes of the answer."""
    store, shapes = predictor.completer.prompts.images, predictor.task.shapes(sample, answer)
    return [draw_shapes(store.fetch(ref), () if number else shapes) for number, ref in enumerate(sample.images)]


def answer_html(images: Sequence[Image.Image], answer: Answer, memory: Memory = Memory()) -> str:
    """Return the answer as HTML: images, completion, parsed values, class probabilities and agent memory."""
    parts = [
        f'<img alt="image {number} as the model sees it" src="{_data_uri(image)}" style="max-width:100%">'
        for number, image in enumerate(images, 1)
    ]
    parts.append(f'<h2>Answer</h2><p data-part="completion" style="white-space:pre-wrap">{escape(answer.text)}</p>')
    if answer.problem is not None:
        parts.append(
            f'<p role="alert" data-part="problem">The answer could not be parsed: {escape(answer.problem)}</p>'
        )
    if answer.truncated:
        parts.append('<p role="alert">The answer was cut off at the token limit.</p>')
    parts.append(
        _table("Parsed", "value", {name.replace("_", " "): _shown(one) for name, one in answer.values.items()})
    )
    parts.append(_probabilities(answer.probabilities or {}))
    for name, content in (("Short-term memory", memory.short), ("Long-term memory", memory.long)):
        parts.append(_table(name, "memory", {key: _shown(value) for key, value in content.items()}))
    return "\n".join(parts)


def escape(text: str) -> str:
    """Return a text as HTML that neither a browser nor a template of Gradio interprets."""
    return html.escape(text).translate(_ENTITIES)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return (
            ", ".join(f"[{_shown(one)}]" if isinstance(one, list | tuple) else _shown(one) for one in value) or "none"
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items())
    return "" if value is None else str(value)


def _table(title: str, part: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f'<tr data-part="{part}"><th style="text-align:left">{escape(str(name))}</th><td>{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f"<h3>{escape(title)}</h3><table>{cells}</table>"


def _probabilities(found: Mapping[str, float]) -> str:
    """Return a table of the probabilities, the highest first, with a bar for each."""
    if not found:
        return ""
    rows = "".join(
        f'<tr data-part="probability" data-value="{value:.6f}"><th style="text-align:left">{escape(name)}</th>'
        f'<td style="width:60%"><meter min="0" max="1" value="{value:.4f}" style="width:100%"></meter></td>'
        f"<td>{100 * value:.1f} %</td></tr>"
        for name, value in sorted(found.items(), key=lambda pair: -pair[1])
    )
    return f"<h3>Probabilities of the classes</h3><table style='width:100%'>{rows}</table>"


def _problem_html(problem: Problem) -> str:
    style = "border-left:4px solid #c0392b;padding-left:12px"
    code = escape(problem.code)
    return f'<p role="alert" style="{style}" data-part="error" data-code="{code}">{escape(str(problem))}</p>'


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
