"""The model card of a Stable Diffusion LoRA, and the copy of its licence, which must go with it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from toolkit.errors import ModelError
from toolkit.imagegen.licence import APACHE, GeneratorLicence
from toolkit.models.model_paths import public_name
from toolkit.runfolder import hide_secrets, write_text

CARD = "README.md"
LICENCE_COPY = "LICENSE"
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """The facts that the card of a LoRA states.

    Attributes:
        name: title, such as the run's name.
        base: the base model, a Hub name or a folder. Of a folder only its name is written.
        revision: the commit of the base that was loaded, or a digest of the folder.
        licence: from ``licence_of``.
        method: how the LoRA was trained, such as ``ddpo``.
        rank: r of the LoRA.
        alpha: alpha of the LoRA.
        modalities: of the images it was trained for.
        training: further facts of the training, label -> text.
        results: the results table in Markdown, with what its figures mean. Empty: the card says that it has none.
        versions: library -> version.
    """

    name: str
    base: str
    revision: str
    licence: GeneratorLicence
    method: str
    rank: int
    alpha: int
    modalities: Sequence[str] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    results: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check licence and revision.

        Raises:
            ModelError: the licence is Apache-2.0, or the revision is empty.
        """
        if self.licence.id == APACHE.id:
            rule = "the licence of a Stable Diffusion LoRA must be its base model's, which is never Apache-2.0"
            raise ModelError(
                "imagegen.lora_licence_not_bases", rule, place=public_name(self.base), value=self.licence.id
            )
        if not self.revision.strip():
            rule = "the card must name the base model's revision"
            remedy = "Give the commit that was loaded, or a digest of the folder."
            raise ModelError(
                "imagegen.base_revision_missing", rule, place=public_name(self.base), value=self.revision, remedy=remedy
            )


def write_card(folder: Path, card: GeneratorCard) -> None:
    """Write the card, and a copy of the licence if this package has one. The same facts give the same bytes."""
    if card.licence.file is not None:
        write_text(folder / LICENCE_COPY, card.licence.file.read_text(encoding="utf-8"))
    write_text(folder / CARD, hide_secrets(str(model_card(card))))


def model_card(card: GeneratorCard) -> ModelCard:
    """Return the card with its header."""
    sections = (_title(card), _use(card), _terms(card), _usage(card), _results(card), _training(card), _versions(card))
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_header(card).to_yaml()}\n---\n\n{body}\n")


def _header(card: GeneratorCard) -> ModelCardData:
    licence, on_hub = card.licence, _is_hub_name(card.base)
    named = licence.id == "other"
    more: dict[str, Any] = {"base_model_relation": "adapter"} if on_hub else {}
    return ModelCardData(
        base_model=card.base if on_hub else None,
        library_name="diffusers",
        license=licence.id,
        license_name=_slug(licence.name) if named else None,
        license_link=(licence.link or None) if named else None,
        pipeline_tag="text-to-image",
        tags=["lora", "stable-diffusion", "medical", "synthetic-images", "research", card.method],
        **more,
    )


def _title(card: GeneratorCard) -> str:
    shown = ", ".join(card.modalities)
    images = f"synthetic medical images ({_text(shown)})" if shown else "synthetic medical images"
    return f"# {_text(card.name)}\n\nA LoRA for {_base(card)} that generates {images}. For research."


def _use(card: GeneratorCard) -> str:
    return "\n\n".join(
        (
            "## Intended use",
            "Research on image generators. All images that it generates are synthetic. Mark them as synthetic wherever "
            "you pass them on. A generator can still reproduce images that it was trained on.",
            "**Not a medical device.** It is not meant for diagnosis, for decisions about patients, for medical "
            "advice, or for the interpretation of medical results. No authority has cleared it.",
            "The ratings behind it measure how images look to experts. They do not show clinical quality.",
        )
    )


def _terms(card: GeneratorCard) -> str:
    licence = card.licence
    name = f"[{licence.name}]({licence.link})" if licence.link else _text(licence.name)
    derived = f"The base model is under {name}. So is this LoRA, which derives from it."
    parts = ["## Licence and use restrictions", derived]
    if licence.medical:
        parts += [
            "Attachment A of the licence restricts the use of the model and of everything derived from it. Among "
            f'others, you agree not to use it "{licence.medical}". Read all restrictions in '
            f"[{LICENCE_COPY}]({LICENCE_COPY}), which is a copy of the licence.",
            "These restrictions also hold for a model that is trained on its images. If you pass on this LoRA or "
            "anything derived from it, you must pass on the restrictions as binding terms, with a copy of the "
            "licence, its notices, and a notice about the files that you changed.",
        ]
    else:
        parts.append("**No copy of the licence is in this folder.** Add one before you pass on these files.")
    parts.append(
        f"**Changed files:** `{LORA}` was made by this training. It changes the base model's UNet. The base model's "
        "own files are unchanged and not included."
    )
    return "\n\n".join(parts)


def _usage(card: GeneratorCard) -> str:
    revision = f", revision={card.revision!r}" if _is_hub_name(card.base) else ""
    return f"""## How to use it

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({public_name(card.base)!r}{revision}, use_safetensors=True)
pipeline.load_lora_weights(".", weight_name={LORA!r})  # this folder
```"""


def _results(card: GeneratorCard) -> str:
    none = "**It was not evaluated.** No figure says how good its images are."
    return f"## Results\n\n{card.results.strip() or none}"


def _training(card: GeneratorCard) -> str:
    lines = [
        f"Base model: {_base(card)}, revision `{card.revision}`",
        f"Method: {_text(card.method)}",
        f"LoRA: r {card.rank}, alpha {card.alpha}",
        *(f"{_text(label)}: {_text(text)}" for label, text in card.training.items()),
    ]
    return "## Training\n\n" + "\n".join(f"- {line}" for line in lines)


def _versions(card: GeneratorCard) -> str:
    text = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    return f"## Versions\n\n{text}" if text else ""


def _base(card: GeneratorCard) -> str:
    if _is_hub_name(card.base):
        return f"[{card.base}](https://huggingface.co/{card.base})"
    return f"`{public_name(card.base)}`"


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and public_name(name) == name


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")


def _text(text: str) -> str:
    """Return one line of Markdown without marks."""
    return " ".join(re.sub(r"([\\`*|<>\[\]])", r"\\\1", text).split())
