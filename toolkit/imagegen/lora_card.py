"""Files beside the LoRA of a run: its identity, and for Stable Diffusion its model card and licence.

``stages/<arm>/lora.json`` identifies base and LoRA. The model card and the copy of the licence are beside the LoRA.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from toolkit.errors import ModelError, RunError
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.generators.dit import is_dit
from toolkit.imagegen.generators.generator import BaseModel, digest
from toolkit.imagegen.generators.lora import LORA_FILE
from toolkit.imagegen.licence import APACHE, GeneratorLicence, licence_of
from toolkit.imagegen.results import ArmRow, arm_figures, arm_row
from toolkit.imagegen.settings import bootstrap_of
from toolkit.imagegen.training.arm import ArmFigures
from toolkit.models.model_paths import public_name
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import TINY_GENERATOR
from toolkit.runfolder import RunFolder, hide_secrets, installed_versions, read_json, write_json, write_text
from toolkit.scoring.statistics import Estimate

CARD = "README.md"
LICENCE_COPY = "LICENSE"
RECORD = "lora.json"
FILES = frozenset({CARD, LICENCE_COPY, LORA_FILE})
"""Files in the folder of a LoRA."""

_TEMPLATE = Path(__file__).parent / "lora_card.md"


@dataclass(frozen=True, slots=True)
class LoraRecord:
    """A LoRA and its base. ``base_sha256`` is of the parameters that the LoRA changes."""

    sha256: str
    base: str
    revision: str | None
    base_sha256: str


def required_licence(section: Imagegen) -> GeneratorLicence | None:
    """Return the licence of the recipe's generator. None: a DiT of this toolkit, which is no Stable Diffusion model.

    Raises:
        ModelError: the licence of a Stable Diffusion model is not known, or the named one is wrong.
    """
    keys = section.generator
    if keys.model == TINY_GENERATOR or is_dit(Path(keys.model)):
        return None
    return licence_of(keys.model, keys.licence)


def describe_lora(context: StageContext, base: BaseModel, arm: str, figures: ArmFigures) -> None:
    """Write the record of an arm's LoRA, and for Stable Diffusion its model card and the copy of its licence.

    Args:
        context: the context of the stage.
        base: the base that was trained on.
        arm: control, sft or ddpo, with its LoRA saved.
        figures: the figures of the arm. Those of the arms before it are in the run.
    """
    folder = context.run.weights_folder(arm)
    record = LoraRecord(digest([folder / LORA_FILE]), public_name(base.name), base.revision, base.sha256)
    write_json(context.run.stage_folder(arm) / RECORD, asdict(record))
    licence = required_licence(context.section)
    if licence is not None:
        write_card(folder, _card(context, base, licence, arm, {**arm_figures(context.run), arm: figures}))


def read_lora_record(run: RunFolder, arm: str) -> LoraRecord:
    """Return the record of an arm's LoRA.

    Raises:
        RunError: it is missing or damaged.
    """
    path = run.path / "stages" / arm / RECORD
    try:
        return TypeAdapter(LoraRecord).validate_python(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        raise RunError(
            "imagegen.lora_record_unreadable",
            "the record of the LoRA must be unchanged",
            place=path,
            value=str(error).splitlines()[0],
            remedy="Restore it, or start again with --fresh. The old folder is kept under another name.",
        ) from error


def check_lora_file(folder: Path, record: LoraRecord) -> Path:
    """Return the folder of a LoRA if its file is the one on record. Raises ModelError."""
    file = folder / LORA_FILE
    try:
        changed = digest([file]) != record.sha256
    except OSError as error:
        changed, reason = True, error.strerror or str(error)
    else:
        reason = "its content differs (SHA-256)"
    if changed:
        raise ModelError(
            "imagegen.lora_changed",
            "the LoRA must be the one that the run trained",
            place=file,
            value=reason,
            remedy="Restore the file that the run wrote.",
        )
    return folder


def check_lora_folder(run: RunFolder, section: Imagegen, arm: str) -> Path:
    """Return the folder of an arm's LoRA if it can be passed on: unchanged, with its model card and its licence.

    Raises:
        ModelError: the generator is no Stable Diffusion model, or a file is missing, changed or unknown.
        RunError: the record of the LoRA is missing.
    """
    licence, folder = required_licence(section), run.weights_folder(arm)
    if licence is None:
        raise ModelError(
            "imagegen.lora_not_stable_diffusion",
            "a published LoRA must be of a Stable Diffusion model, so that diffusers can load it",
            place="imagegen.generator.model",
            value=public_name(section.generator.model),
            remedy="Train on a Stable Diffusion base.",
        )
    if missing := sorted(name for name in FILES if not (folder / name).is_file()):
        remedy = "Restore them. Without a copy of the licence in this package, save its text as LICENSE."
        raise ModelError(
            "imagegen.lora_folder_incomplete",
            "a LoRA must have its model card and a copy of its licence",
            place=folder,
            value=missing,
            remedy=remedy,
        )
    if unknown := sorted(path.name for path in folder.iterdir() if path.name not in FILES):
        remedy = "Move other files away."
        raise ModelError(
            "imagegen.lora_folder_unknown_files",
            "the folder must hold the LoRA, its model card and its licence only",
            place=folder,
            value=unknown,
            remedy=remedy,
        )
    _check_unchanged(folder, licence, read_lora_record(run, arm))
    return folder


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """The facts that the model card of a LoRA states.

    Attributes:
        name: title, such as the run's name.
        base: the base model, a Hub name or a folder. Of a folder only its name is written.
        revision: the commit of the base that was loaded, or a digest of the folder.
        licence: the licence from ``licence_of``.
        method: how the LoRA was trained, such as ``ddpo``.
        rank: r of the LoRA.
        alpha: alpha of the LoRA.
        modalities: the modalities of the images that it was trained for.
        training: further facts of the training, label -> text.
        results: the results table in Markdown, with an explanation. Empty: it was not evaluated.
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
            rule = "the model card must name the base model's revision"
            remedy = "Give the commit that was loaded, or a digest of the folder."
            raise ModelError(
                "imagegen.base_revision_missing", rule, place=public_name(self.base), value=self.revision, remedy=remedy
            )


def write_card(folder: Path, card: GeneratorCard) -> None:
    """Write the model card, and a copy of the licence if this package has one. The same facts give the same bytes."""
    if card.licence.file is not None:
        write_text(folder / LICENCE_COPY, card.licence.file.read_text(encoding="utf-8"))
    write_text(folder / CARD, hide_secrets(f"{model_card(card)}\n"))


def model_card(card: GeneratorCard) -> ModelCard:
    """Return the model card with its header."""
    licence, folder = card.licence, not _is_hub_name(card.base)
    source = repr(public_name(card.base)) + ("" if folder else f", revision={card.revision!r}")
    filled: ModelCard = ModelCard.from_template(
        _header(card),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        name=_text(card.name),
        base=f"`{public_name(card.base)}`" if folder else f"[{card.base}](https://huggingface.co/{card.base})",
        source=source,
        revision=card.revision,
        method=_text(card.method),
        modalities=_text(", ".join(card.modalities)),
        licence_name=f"[{licence.name}]({licence.link})" if licence.link else _text(licence.name),
        restriction=licence.medical,
        licence_file=LICENCE_COPY,
        lora_file=LORA_FILE,
        rank=card.rank,
        alpha=card.alpha,
        results=card.results.strip(),
        training={_text(label): _text(text) for label, text in card.training.items()},
        versions=", ".join(f"{name} {version}" for name, version in card.versions.items()),
    )
    return filled


def _check_unchanged(folder: Path, licence: GeneratorLicence, record: LoraRecord) -> None:
    restore = "Restore the file that the run wrote."
    check_lora_file(folder, record)
    copy = folder / LICENCE_COPY
    own = None if licence.file is None else licence.file.read_text(encoding="utf-8")
    text = copy.read_text(encoding="utf-8")
    if not text.strip() or own not in (None, text):
        raise ModelError(
            "imagegen.licence_text_changed",
            f"the file must be the text of the licence {licence.name}",
            place=copy,
            remedy=restore,
        )
    named = _licence_in(folder / CARD)
    if named != licence.id:
        rule = f"the model card must name the licence of the base model, {licence.id}"
        raise ModelError("imagegen.card_licence_not_bases", rule, place=folder / CARD, value=named, remedy=restore)


def _licence_in(card: Path) -> str | None:
    """Return the licence in the header of a model card. The card's owner may have completed it."""
    try:
        named: str | None = ModelCard.load(card).data.license
    except (ValueError, YAMLError):
        return None
    return named


def _card(
    context: StageContext, base: BaseModel, licence: GeneratorLicence, arm: str, figures: Mapping[str, ArmFigures]
) -> GeneratorCard:
    section = context.section
    rows = [
        arm_row(name, figures, bootstrap_of(context.recipe))
        for name in dict.fromkeys(("base", "control", arm))
        if name in figures
    ]
    return GeneratorCard(
        name=f"{context.run.name}, {arm}",
        base=base.name,
        revision=base.revision or f"sha256:{base.sha256}",
        licence=licence,
        method=arm,
        rank=section.generator.lora.r,
        alpha=section.generator.lora.alpha,
        modalities=section.modalities,
        training=dict(_training(section, arm)),
        results="\n".join(_results(section, rows)),
        versions=installed_versions(),
    )


def _training(section: Imagegen, arm: str) -> Iterator[tuple[str, str]]:
    keys, sampling = section.update, section.generator
    yield "Ratings", "synthetic, by simulated experts" if section.synthetic is not None else "by experts"
    if arm == "ddpo":
        images = f"{keys.prompts_per_round} prompts with {keys.images_per_prompt} images each"
        yield "Rounds", f"at most {keys.rounds} of {images}. The LoRA is that of the best round by the judge"
        yield "Learning rate", f"{keys.learning_rate:g}"
    else:
        chosen = "rated images that the selector passes" if arm == "sft" else "random rated images, as a control"
        yield "Images", chosen
        yield "Optimizer steps", f"{keys.sft_steps} of {keys.sft_batch_size} images"
        yield "Learning rate", f"{keys.sft_learning_rate:g}"
    yield "Image size", f"{section.size} pixels"
    yield "Sampling", f"DDIM, eta 1, {sampling.steps} steps, guidance scale {sampling.guidance_scale:g}"


def _results(section: Imagegen, rows: list[ArmRow]) -> Iterator[str]:
    yield (
        f"Mean score of {rows[0].judge.n} images of each generator by the judge, from 0 to 1, with 95 % bootstrap "
        "intervals over prompts. The judge is a model of expert ratings that never was a reward. Prompts and noise are "
        "the same for all generators."
    )
    yield ""
    yield "| generator | judge score | difference to the base |"
    yield "|---|---|---|"
    for row in rows:
        change = "" if row.to_base is None else _interval(row.to_base.difference, "+.3f")
        yield f"| {row.label} | {_interval(row.judge, '.3f')} | {change} |"
    if section.synthetic is not None:
        yield ""
        yield "The ratings were synthetic. These figures show that the software works, not that the images are good."


def _interval(found: Estimate, spec: str) -> str:
    if found.value is None:
        return "not defined"
    text = format(found.value, spec)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{format(found.low, spec)} to {format(found.high, spec)}]"


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


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and public_name(name) == name


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")


def _text(text: str) -> str:
    """Return one line of Markdown without marks."""
    return " ".join(re.sub(r"([\\`*|<>\[\]])", r"\\\1", text).split())
