"""Where an export is used next: commands that serve it and Ollama's Modelfile, with this model's own file names."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.exporting.chat_turns import Turns, ollama_template, read_turns
from toolkit.models.chat_template import find_turn_end
from toolkit.models.model_paths import public_name
from toolkit.recipe import Recipe

HERE = "{folder}"
"""Stands in a command for the folder of the form."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""
MODELFILE = "Modelfile"


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server must be told of a model so that it is asked as in its evaluation."""

    name: str
    base: str
    max_tokens: int
    """Prompt, pictures and answer together."""
    answer_tokens: int
    pictures: int
    """The most that one question has."""
    rank: int
    vision: bool
    """Whether the adapter stands on the vision tower too, which vLLM cannot load."""
    stops: tuple[str, ...]
    turns: Turns | None
    system: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, processor: Any, pictures: int) -> "Serving":
        """Read off the recipe and the processor; ``pictures``: the most that one question has."""
        return cls(
            name=recipe.run.name.lower(),  # Ollama takes small letters
            base=public_name(recipe.model.name),
            max_tokens=recipe.model.max_tokens,
            answer_tokens=recipe.evaluation.max_completion_tokens,
            pictures=max(pictures, 1),
            rank=recipe.lora.r,
            vision=recipe.lora.vision,
            stops=(find_turn_end(processor).text,),
            turns=read_turns(processor),
            system=recipe.prompt.system,
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """The GGUF files of a folder: text models, and the vision part that goes with each of them."""

    texts: tuple[str, ...]
    mmproj: str

    @classmethod
    def of(cls, folder: Path) -> "Pair | None":
        """The files in ``folder``; None: a text model or the vision part is not there."""
        names = sorted(file.name for file in folder.glob("*.gguf"))
        vision = [name for name in names if name.startswith("mmproj")]
        texts = tuple(name for name in names if name not in vision)
        return cls(texts, vision[0]) if texts and vision else None


def commands(form: str, folder: Path, serving: Serving) -> list[str]:
    """Shell commands that serve what is in ``folder``; ``{folder}`` in them stands for where it lies then."""
    if form == "gguf":
        pair = Pair.of(folder)
        return [] if pair is None else _gguf_commands(pair, serving)
    limit = f"--max-model-len {serving.max_tokens} --limit-mm-per-prompt '{{\"image\": {serving.pictures}}}'"
    template = f"--chat-template {HERE}/chat_template.jinja" if (folder / "chat_template.jinja").is_file() else ""
    if form == "merged":
        parts = [f"vllm serve {HERE} --served-model-name {serving.name}", limit, template]
    elif serving.vision or serving.rank > LORA_RANKS[-1]:
        return []
    else:
        rank = next(rank for rank in LORA_RANKS if rank >= serving.rank)
        lora = f"--enable-lora --max-lora-rank {rank} --lora-modules {serving.name}={HERE}"
        parts = [f"vllm serve {shlex.quote(serving.base)}", lora, limit, template]
    return [" ".join(part for part in parts if part)]


def fill_in(command: str, folder: str) -> str:
    """A command of ``commands`` for the folder that the form lies in."""
    return command.replace(HERE, shlex.quote(folder))


def write_modelfiles(folder: Path, serving: Serving) -> list[str]:
    """Ollama's Modelfile for each text model in ``folder``; gives their names.

    One is called ``Modelfile``; of several each has its text model's name behind that.
    """
    pair = Pair.of(folder)
    if pair is None:
        return []
    names = _modelfile_names(pair)
    for name, text in zip(names, pair.texts, strict=True):
        (folder / name).write_text(modelfile(text, pair.mmproj, serving), encoding="utf-8")
    return names


def modelfile(text: str, mmproj: str, serving: Serving) -> str:
    """Ollama's Modelfile of a text model and its vision part, greedy as the evaluation asks.

    Two FROM lines are how Ollama takes a projector (ollama#9780); some versions took it and answered blindly all the
    same (ollama#9967), so the card tells to look at what ``ollama show`` says.
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


def _gguf_commands(pair: Pair, serving: Serving) -> list[str]:
    text, name = pair.texts[-1], _modelfile_names(pair)[-1]
    server = f"llama-server -m {HERE}/{shlex.quote(text)} --mmproj {HERE}/{shlex.quote(pair.mmproj)}"
    return [
        f"{server} -c {serving.max_tokens} -np 1 --jinja --temp 0",
        f"ollama create {serving.name} -f {HERE}/{shlex.quote(name)}",
        f"ollama run {serving.name}",
    ]


def _modelfile_names(pair: Pair) -> list[str]:
    if len(pair.texts) == 1:
        return [MODELFILE]
    return [f"{MODELFILE}.{text.removesuffix('.gguf')}" for text in pair.texts]
