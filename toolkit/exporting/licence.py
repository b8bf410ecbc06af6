"""The licence of a base model, as in its own model card. An unknown licence is left out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.models.model_paths import public_name


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence. ``id`` is the identifier of the Hub. ``name`` and ``link`` are set if it is "other"."""

    id: str
    name: str | None = None
    link: str | None = None


_QWEN = "https://huggingface.co/Qwen/{}/blob/main/LICENSE"
_HEALTH_AI = Licence(
    "other", "health-ai-developer-foundations", "https://developers.google.com/health-ai-developer-foundations/terms"
)
_APACHE = Licence("apache-2.0")

LICENCES: Sequence[tuple[str, Licence]] = (
    (r"^medgemma", _HEALTH_AI),
    (r"^(pali)?gemma-?[23]", Licence("gemma")),
    (r"^qwen2\.5-vl-3b", Licence("other", "qwen-research", _QWEN.format("Qwen2.5-VL-3B-Instruct"))),
    (r"^qwen2\.5-vl-72b", Licence("other", "qwen", _QWEN.format("Qwen2.5-VL-72B-Instruct"))),
    (r"^qwen2-vl-72b", Licence("other", "tongyi-qianwen", _QWEN.format("Qwen2-VL-72B-Instruct"))),
    (r"^qwen2-vl-[27]b", _APACHE),
    (r"^qwen2\.5-vl-(7|32)b", _APACHE),
    (r"^qwen3-vl", _APACHE),
)
"""Pattern of the last part of a model's name, in lower case -> its licence."""


def licence_of(model: str) -> Licence | None:
    """Return the licence of ``model.name`` of a recipe, or None if it is unknown.

    A folder is looked up by its name. The tiny model has the licence of this package.
    """
    if model == "tiny":
        return _APACHE
    name = public_name(model).rpartition("/")[2].lower()
    return next((licence for pattern, licence in LICENCES if re.search(pattern, name)), None)
