"""Commands that serve an export, and Ollama Modelfiles with the chat template and the file names of the export."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError
from toolkit.models.chat_template import find_turn_end, render_prompt
from toolkit.models.image_limits import PixelLimit
from toolkit.models.messages import Message, conversation
from toolkit.models.model_paths import public_name
from toolkit.recipe import Recipe
from toolkit.recipe.windows import hounsfield_windows

FOLDER = "{folder}"
"""Placeholder of the export's folder in a command."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""
MODELFILE = "Modelfile"
SYSTEM, QUESTION, ANSWER = "SENTINELSYSTEM", "SENTINELQUESTION{}", "SENTINELANSWER{}"
"""Texts that mark the parts of a rendered conversation."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The separators of a prompt, without the BOS token, which the tokenizer adds.

    Attributes:
        head: the start of a prompt without a system prompt.
        after_question: the text after each question.
        after_answer: the text after each answer.
        before_system: the text before the system prompt. None: the template accepts no system prompt.
        after_system: the text after the system prompt.
    """

    head: str
    after_question: str
    after_answer: str
    before_system: str | None = None
    after_system: str | None = None

    def render(self, texts: Sequence[str], system: str | None = None) -> str:
        """Return the prompt of alternating questions and answers. The first and last text are questions."""
        has_system = system and self.before_system is not None
        start = f"{self.before_system}{system}{self.after_system}" if has_system else self.head
        return start + "".join(
            text + (self.after_answer if i % 2 else self.after_question) for i, text in enumerate(texts)
        )


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings of a server that gives the same prompts and completions as the evaluation.

    Attributes:
        name: the name of the model on the server.
        base: the base model.
        max_tokens: maximum length of prompt, image tokens and completion in tokens.
        answer_tokens: maximum length of a completion in tokens.
        images: maximum number of images per prompt.
        rank: the rank of the LoRA adapter.
        vision: whether the adapter includes the vision tower, which vLLM does not support.
        stops: texts that end a completion.
        turns: separators of the chat template. None: it cannot be described by separators.
        system: the system prompt.
        dora: whether the adapter is a DoRA adapter, which vLLM does not support.
        limit: the limit of pixels with which a server resizes images as the toolkit does. None: it needs no limit.
        images_note: the size and window of images in training, as the comment of a command.
    """

    name: str
    base: str
    max_tokens: int
    answer_tokens: int
    images: int
    rank: int
    vision: bool
    stops: tuple[str, ...]
    turns: Turns | None
    system: str | None = None
    limit: PixelLimit | None = None
    dora: bool = False
    images_note: str = ""

    @classmethod
    def of(cls, recipe: Recipe, processor: Any, images: int, limit: PixelLimit | None = None) -> "Serving":
        """Return the settings for a recipe and its processor. ``images`` is the maximum per prompt."""
        return cls(
            name=recipe.run.name.lower(),  # Ollama accepts only lowercase names
            base=public_name(recipe.model.name),
            max_tokens=recipe.model.max_tokens,
            answer_tokens=recipe.evaluation.max_completion_tokens,
            images=max(images, 1),
            rank=recipe.lora.r,
            vision=recipe.lora.vision,
            stops=(find_turn_end(processor).text,),
            turns=read_turns(processor),
            system=recipe.prompt.system,
            limit=limit,
            dora=recipe.lora.dora,
            images_note=_images_note(recipe),
        )


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """The GGUF files of a folder: language models, and their common projector."""

    texts: tuple[str, ...]
    mmproj: str

    @classmethod
    def of(cls, folder: Path) -> "GgufFiles | None":
        """Return the files in ``folder``, or None if the language model or the projector is missing."""
        names = sorted(file.name for file in folder.glob("*.gguf"))
        vision = [name for name in names if name.startswith("mmproj")]
        texts = tuple(name for name in names if name not in vision)
        return cls(texts, vision[0]) if texts and vision else None


def commands(name: str, folder: Path, serving: Serving) -> list[str]:
    """Return shell commands that serve a format. ``{folder}`` is the placeholder of its folder."""
    if name == "gguf":
        pair = GgufFiles.of(folder)
        return [] if pair is None else _gguf_commands(pair, serving)
    limit = f"--max-model-len {serving.max_tokens} --limit-mm-per-prompt '{{\"image\": {serving.images}}}'"
    if serving.limit is not None:  # an adapter is served with the processor of its base
        limit += f" --mm-processor-kwargs '{{\"max_pixels\": {serving.limit.max_pixels}}}'"
    template = f"--chat-template {FOLDER}/chat_template.jinja" if (folder / "chat_template.jinja").is_file() else ""
    if name == "merged":
        parts = [f"vllm serve {FOLDER} --served-model-name {serving.name}", limit, template, _comment(serving)]
    elif serving.vision or serving.dora or serving.rank > LORA_RANKS[-1]:
        return []
    else:
        rank = next(rank for rank in LORA_RANKS if rank >= serving.rank)
        lora = f"--enable-lora --max-lora-rank {rank} --lora-modules {serving.name}={FOLDER}"
        parts = [f"vllm serve {shlex.quote(serving.base)}", lora, limit, template, _comment(serving)]
    return [" ".join(part for part in parts if part)]


def fill_folder(command: str, folder: str) -> str:
    """Replace the placeholder of a command by a folder."""
    return command.replace(FOLDER, shlex.quote(folder))


def write_modelfiles(folder: Path, serving: Serving) -> list[str]:
    """Write an Ollama Modelfile for each language model in ``folder``, and return their names.

    A single one is called ``Modelfile``. Otherwise the name of the language model is appended.
    """
    pair = GgufFiles.of(folder)
    if pair is None:
        return []
    names = _modelfile_names(pair)
    for name, text in zip(names, pair.texts, strict=True):
        (folder / name).write_text(modelfile(text, pair.mmproj, serving), encoding="utf-8")
    return names


def modelfile(text: str, mmproj: str, serving: Serving) -> str:
    """Return the Ollama Modelfile of a language model and its projector, with greedy decoding as in evaluation.

    Ollama accepts a projector as a second FROM line (ollama#9780). Some versions ignore the image (ollama#9967), so the
    model card recommends a check with ``ollama show``.
    """
    lines = [f"FROM ./{text}", f"FROM ./{mmproj}"]
    if serving.turns is not None:
        lines.append(f'TEMPLATE """{ollama_template(serving.turns)}"""')
    if serving.system:
        lines.append(f'SYSTEM """{serving.system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in serving.stops]
    lines += [
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {serving.max_tokens}",
        f"PARAMETER num_predict {serving.answer_tokens}",
    ]
    return "\n".join(lines) + "\n"


def read_turns(processor: Any) -> Turns | None:
    """Return the separators of the processor's chat template, or None if it cannot be described by separators.

    The result is compared with the template's rendering of a longer conversation.
    """
    texts = [QUESTION.format(1), ANSWER.format(1), QUESTION.format(2), ANSWER.format(2), QUESTION.format(3)]
    try:
        one, whole = _render(processor, texts[:1]), _render(processor, texts)
    except ModelError:
        return None
    head, _, after_question = one.partition(texts[0])
    after_answer = whole.partition(texts[1])[2].partition(texts[2])[0]
    turns = Turns(head, after_question, after_answer, *_read_system(processor))
    systems = [None] if turns.before_system is None else [None, SYSTEM]
    same = all(turns.render(texts, system) == _render(processor, texts, system) for system in systems)
    return turns if same else None


def ollama_template(turns: Turns) -> str:
    """Return the Ollama TEMPLATE (Go's text/template over ``.System`` and ``.Messages``) that is equal to ``turns``.

    Every separator is a quoted string, so that its newlines and spaces do not depend on the template's layout.
    """
    start = _piece(turns.head)
    if turns.before_system is not None and turns.after_system is not None:
        system = f"{_piece(turns.before_system)}{{{{ $.System }}}}{_piece(turns.after_system)}"
        start = f"{{{{ if $.System }}}}{system}{{{{ else }}}}{start}{{{{ end }}}}"
    return "\n".join(
        (
            "{{- $first := true }}",
            "{{- range .Messages }}",
            '{{- if eq .Role "user" }}',
            f"{{{{- if $first }}}}{start}{{{{ else }}}}{_piece(turns.after_answer)}{{{{ end }}}}",
            f"{{{{- $first = false }}}}{{{{ .Content }}}}{_piece(turns.after_question)}",
            '{{- else if eq .Role "assistant" }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        )
    )


def _gguf_commands(pair: GgufFiles, serving: Serving) -> list[str]:
    text, name = pair.texts[-1], _modelfile_names(pair)[-1]
    server = f"llama-server -m {FOLDER}/{shlex.quote(text)} --mmproj {FOLDER}/{shlex.quote(pair.mmproj)}"
    options = [f"-c {serving.max_tokens} -np 1 --jinja --temp 0"]
    if serving.limit is not None:
        options.append(f"--image-max-tokens {serving.limit.max_tokens}")
    return [
        " ".join(part for part in (server, *options, _comment(serving)) if part),
        f"ollama create {serving.name} -f {FOLDER}/{shlex.quote(name)}",
        f"ollama run {serving.name}",
    ]


def _images_note(recipe: Recipe) -> str:
    """Return how a server's images must be prepared."""
    images = recipe.images
    shown = ", ".join(f"{low:g} to {high:g} HU" for low, high in hounsfield_windows(images.window))
    size = f"longest side at most {images.max_side:,} pixels"
    return f"prepare images as in training: {size}, window {shown or images.window}"


def _comment(serving: Serving) -> str:
    return f"# {serving.images_note}" if serving.images_note else ""


def _modelfile_names(pair: GgufFiles) -> list[str]:
    if len(pair.texts) == 1:
        return [MODELFILE]
    return [f"{MODELFILE}.{text.removesuffix('.gguf')}" for text in pair.texts]


def _render(processor: Any, texts: Sequence[str], system: str | None = None) -> str:
    messages = conversation(texts[0], 0, system)
    for index, text in enumerate(texts[1:], start=1):
        messages += _answer(text) if index % 2 else conversation(text, 0)
    text = render_prompt(processor, messages)
    return text.removeprefix(processor.tokenizer.bos_token or "")


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _read_system(processor: Any) -> tuple[str, str] | tuple[()]:
    try:
        text = _render(processor, [QUESTION.format(1)], SYSTEM)
    except ModelError:  # some templates reject a system prompt
        return ()
    before, found, rest = text.partition(SYSTEM)
    return (before, rest.partition(QUESTION.format(1))[0]) if found else ()


def _piece(text: str) -> str:
    # A JSON string is a valid Go string if characters beyond ASCII are not escaped.
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
