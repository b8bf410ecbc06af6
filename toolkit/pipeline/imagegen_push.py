"""Push the LoRA of an image generator to the Hub, with its model card and licence."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import RunError
from toolkit.exporting.push import Push, check_push, upload


@dataclass(frozen=True, slots=True)
class PushedLora:
    """Whose LoRA was pushed, its licence, and the address of the commit."""

    method: str
    licence: str
    url: str


def push_generator(path: Path, push: Push, method: str | None = None) -> PushedLora:
    """Push the LoRA of a finished run. It is private unless the push says otherwise.

    Args:
        path: the run folder.
        push: where to, and how.
        method: sft or ddpo. None: the one with the highest judge score.

    Raises:
        ModelError: the generator is no Stable Diffusion model, or a file is missing, changed or unknown.
        RunError: the method has not finished, or the Hub refuses.
        RecipeError: the run is one of a vision-language model.
    """
    check_push(push)
    from toolkit.imagegen.generate import open_finished
    from toolkit.imagegen.lora_card import check_lora_folder, required_licence
    from toolkit.imagegen.results import BASE

    finished = open_finished(path, "toolkit export --push")
    if method == BASE:
        rule, remedy = "the method must have a LoRA", "Choose --method sft or ddpo."
        raise RunError("imagegen.base_not_pushable", rule, place="--method", value=method, remedy=remedy)
    chosen = finished.best_method() if method is None else finished.require(method)
    folder = check_lora_folder(finished.run, finished.section, chosen)
    licence = required_licence(finished.section)
    url = upload(folder, f"LoRA of {chosen}, with its model card and licence", push)
    return PushedLora(chosen, "" if licence is None else licence.name, url)
