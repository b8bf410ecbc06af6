"""The model card: made of the run's records, read by the Hub's own parser, and silent about people and places."""

import json
import re
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

from tests.helpers.recipes import load_recipe
from tests.helpers.training import small_recipe
from toolkit import tiny
from toolkit.exporting.card import CardFacts, model_card, read_facts
from toolkit.exporting.card.licence import licence_of
from toolkit.exporting.card.markdown import table
from toolkit.exporting.public_names import public_recipe, scrub
from toolkit.exporting.serving import Serving
from toolkit.models.model_paths import public_name
from toolkit.pipeline import run_recipe
from toolkit.pipeline.rerun import export_again
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe, SyntheticData
from toolkit.runfolder import RunFolder, find_run, read_json
from toolkit.tasks.mcq.synthetic import write_chest

ROOT = Path(__file__).resolve().parent.parent
PATIENT = "MRN-4815162342"
TOKEN = "hf_" + "PlantedPlantedPlanted"
USER = "anna_kowalski"
REWARD = "def short(sample, answer):\n    return 1.0\n"


@dataclass(frozen=True)
class Planted:
    """A run in a home folder, about patients whose numbers stand in rows, file names and columns."""

    recipe: Recipe
    run: RunFolder
    home: Path

    def folder(self, form: str) -> Path:
        return self.run.path / "stages/export" / form

    def card(self, form: str = "merged") -> str:
        return (self.folder(form) / "README.md").read_text(encoding="utf-8")

    def facts(self, form: str = "merged") -> CardFacts:
        record = self.run.record("export")
        serving = Serving("planted", "basis", 256, 16, 1, 4, False, ("<end_of_turn>",), None)
        return read_facts(
            self.run, self.recipe, self.run.path / record["weights"], form, serving=serving, verification=record[form]
        )


def write_wards(folder: Path) -> dict[str, Path]:
    """Practice films whose patients have numbers, one of them in both splits, and one row that cannot be used."""
    files = write_chest(folder, SyntheticData(kind="chest", train=24, test=40, size=64), 1)
    for picture in (folder / "images").iterdir():
        picture.rename(picture.with_name(picture.name.replace("radiograph", PATIENT)))
    for file in files.values():
        text = file.read_text(encoding="utf-8").replace("radiograph", PATIENT)
        rows = json.loads(text)
        for row in rows.values():
            row["Case"] = row["PatientID"]
        if file.stem == "train":
            first = next(iter(rows.values()))
            first["PatientID"] = f"{PATIENT}000012"  # the first film of the test rows
            next(row for row in rows.values() if row is not first)["correct_answer"] = "Z"
        file.write_text(json.dumps(rows), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    home = tmp_path_factory.mktemp("home") / USER
    (home / "models").mkdir(parents=True)
    for file in tiny.FOLDER.iterdir():
        (home / "models" / "basis").mkdir(exist_ok=True)
        (home / "models" / "basis" / file.name).write_bytes(file.read_bytes())
    files = write_wards(home / "wards")
    (home / "own.py").write_text(REWARD, encoding="utf-8")
    tables = {
        "model": {"name": str(home / "models/basis")},
        "data": {
            "synthetic": None,
            "train": str(files["train"]),
            "test": str(files["test"]),
            "image_root": str(home / "wards"),
            "group": "PatientID",
            "on_leak": "report",
            "max_dropped": 0.1,
        },
        "prompt": {"system": f"My key is {TOKEN}, my notes are in {home}/notes.txt."},
        "rewards": {"custom": (f"{home / 'own.py'}:short",)},
        "sft": {"max_steps": 2},
        "evaluate": {"before": False, "by": ("PatientSex", "PatientID", "Case")},
        "export": {"to": ("adapter", "merged"), "verify": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", USER)
        patch.setenv("HF_TOKEN", TOKEN)
        recipe = small_recipe(home, tables, "planted").model_copy(update={"grpo": None})
        run_recipe(recipe, STAGES)
        yield Planted(recipe, find_run(recipe.run_folder), home)


def test_the_hubs_own_parser_reads_the_header_and_gives_the_scores_of_these_weights(planted: Planted) -> None:
    card = ModelCard.load(planted.folder("merged") / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert {"mcq", "sft", "lora", "merged", "medical"} <= set(card.data.tags or ())
    found = planted.run.record("evaluate-sft")
    scores = {found["score"]: found, **found["also"]}
    assert card.data.eval_results is not None
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name: round(record["value"]["value"], 4) for name, record in scores.items()
    }
    assert card.data.eval_results[0].metric_args["n"] == 40
    # A folder's name is no repository, and nobody knows the licence of what is in it.
    assert (card.data.base_model, card.data.license) == (None, None)
    assert "unknown to the program that wrote this card" in planted.card()


def test_nothing_of_patients_places_users_or_tokens_is_in_any_file(planted: Planted) -> None:
    words = [PATIENT, TOKEN, USER, str(planted.home), str(planted.run.path), socket.gethostname(), str(Path.cwd())]
    everything = (planted.run.path / "stages/data/done.json").read_text(encoding="utf-8")
    assert PATIENT in everything  # the run itself knows them, so there was something to tell
    for form in ("adapter", "merged"):
        for file in planted.folder(form).rglob("*"):
            content = file.read_bytes()
            found = [word for word in words if len(word) > 3 and word.encode() in content]
            assert found == [], file
    assert read_json(planted.folder("adapter") / "adapter_config.json")["base_model_name_or_path"] == "basis"


def test_the_cards_own_code_loads_the_adapter_and_the_merged_weights_alike(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain transformers and peft, as a reader of the card would; the base's folder stands for its name."""
    logits = []
    for form in ("adapter", "merged"):
        (code,) = re.findall(r"```python\n(.*?)```", planted.card(form), re.DOTALL)
        monkeypatch.chdir(planted.folder(form))
        names: dict[str, Any] = {}
        exec(code.replace("'basis'", repr(str(planted.home / "models/basis"))), names)
        text = "<start_of_turn>user\nWhich side?<end_of_turn>\n<start_of_turn>model\n"
        inputs = names["processor"](text=text, return_tensors="pt")
        with torch.inference_mode():
            logits.append(names["model"].float()(**inputs).logits)
    # The base is stored in 16 bits, and is rounded to them where only the adapter comes in 32.
    assert torch.allclose(*logits, atol=0.05)
    assert logits[0].std() > 0.1


def test_rows_left_out_and_leaks_are_counted(planted: Planted) -> None:
    card = planted.card()
    record = planted.run.record("data")
    assert f"| train | {record['rows']['train']} |" in card
    assert [one["count"] for one in record["dropped"]] == [1]
    assert f"1 rows were dropped: {record['dropped'][0]['reason']}" in card
    assert "**Leak:** 1 groups (patients, lesions or images) of test are in train too" in card
    assert planted.run.record("data")["leaks"][0]["kind"] == "group"
    fingerprints = read_json(planted.run.run_file)["fingerprints"]
    assert all(f"`{digest}`" in card for digest in fingerprints.values())


def test_every_row_of_the_results_is_in_the_card_with_its_interval(planted: Planted) -> None:
    card, rows = planted.card(), read_json(planted.run.results_file)["rows"]
    assert [row["label"] for row in rows] == ["majority baseline", "after SFT"]
    for row in rows:
        (line,) = re.findall(rf"^\| {row['label']} \| 40 \| ([\d.]+) % \[([\d.]+) to ([\d.]+)\]", card, re.MULTILINE)
        expected = [100 * row["estimate"][name] for name in ("value", "low", "high")]
        assert [float(number) for number in line] == pytest.approx(expected, abs=0.05)
    assert "**These weights were not shown to be better than the majority baseline**" in card


def test_subgroups_are_shown_and_single_patients_are_not(planted: Planted) -> None:
    card = planted.card()
    by = planted.run.record("evaluate-sft")["summary"]["by"]
    assert len(by["PatientID"]) == len(by["Case"]) == 20
    for value, found in by["PatientSex"].items():
        assert f"| {value} | {found['n']} |" in card
    assert "Case: 20 values with fewer than 5 patients, lesions or images are hidden." in card
    facts = planted.facts()
    evaluation = json.loads(json.dumps(facts.evaluation))
    evaluation["summary"]["not_found"] = ["Scanner"]
    other = str(model_card(planted.folder("merged"), replace(facts, evaluation=evaluation)))
    assert "Subgroups by Scanner: the data has no such column." in other


def test_the_recipe_in_the_card_is_the_runs_with_names_for_paths(planted: Planted) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", planted.card(), re.DOTALL)
    shown = tomllib.loads(text)
    own = planted.recipe.model_dump(mode="json", exclude_none=True)
    assert shown["sft"] == own["sft"]
    assert (shown["model"]["name"], shown["data"]["train"]) == ("basis", "train.json")
    assert shown["rewards"]["custom"] == ["own.py:short"]
    assert "image_root" not in shown["data"]
    assert "My key is [hidden]" in shown["prompt"]["system"]


def test_the_card_of_a_run_is_the_same_every_time(planted: Planted) -> None:
    before = planted.card()
    assert str(model_card(planted.folder("merged"), planted.facts())) == str(
        model_card(planted.folder("merged"), planted.facts())
    )
    record = export_again(planted.run.path, STAGES, ['export.to=["merged"]'])
    assert record["merged"]["questions"] == 2
    assert planted.card() == before


def test_the_card_says_what_was_not_verified(planted: Planted) -> None:
    folder, facts = planted.folder("merged"), planted.facts()
    unverified = str(model_card(folder, replace(facts, verification={**facts.verification, "verified": False})))
    assert "**It is not verified.** These files were not reloaded" in unverified
    assert "**These files themselves:** they were not reloaded" in unverified
    unasked = str(model_card(folder, replace(facts, evaluation=None)))
    assert "**These weights on held-out questions:** they were not evaluated." in unasked
    assert "model-index" not in unasked
    assert "No row is that of these weights" in unasked
    assert "model-index" in str(model_card(folder, facts))


def test_answers_and_ids_in_the_record_of_an_export_stay_out_of_the_card(planted: Planted) -> None:
    facts = planted.facts("merged")
    answers = [{"id": PATIENT, "expected": "lung of Mrs K.", "agreement": 0.5}]
    quants = {"q8_0": {"file": "a-q8_0.gguf", "agreement": 0.98765, "answers": answers}}
    verification = {**facts.verification, "largest_difference": 0.0123, "asked": answers, "quants": quants}
    card = str(model_card(planted.folder("merged"), replace(facts, verification=verification)))
    assert "- largest difference: 0.0123" in card
    assert "2 greedy completions were those of the run's weights. The weights have 32 bits." in card
    assert "| q8_0 | a-q8_0.gguf | 0.9877 |" in card
    assert not re.search(f"{PATIENT}|Mrs K", card)


def test_the_card_names_synthetic_data(planted: Planted, tmp_path: Path) -> None:
    facts = replace(planted.facts(), recipe=small_recipe(tmp_path))
    card = str(model_card(planted.folder("merged"), facts))
    assert "**Real images:** the model was trained and evaluated on synthetic images only." in card
    assert "generated-data" in (ModelCard(card).data.tags or ())
    assert "**Real images:**" not in planted.card()


def test_time_and_energy_are_those_of_the_run_or_said_to_be_unknown(planted: Planted) -> None:
    assert "Of data, sft, evaluate-sft:" in planted.card()
    assert re.search(r"^- GPU hours: ", planted.card(), re.MULTILINE)
    unknown = replace(planted.facts(), compute=type(planted.facts().compute)())
    assert "Time, energy and CO2: not measured." in str(model_card(planted.folder("merged"), unknown))


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.stem)
def test_the_licence_of_every_shipped_recipes_model_is_known(file: Path) -> None:
    licence = licence_of(load_recipe(file).model.name)
    assert licence is not None
    assert (licence.id == "other") == (licence.link is not None) == (licence.name is not None)


def test_gated_terms_are_named_with_their_link_and_an_unknown_model_gets_none() -> None:
    medgemma = licence_of("unsloth/medgemma-4b-it-bnb-4bit")
    assert medgemma is not None
    assert medgemma.name == "health-ai-developer-foundations"
    assert licence_of("Qwen/Qwen2.5-VL-7B-Instruct") != licence_of("Qwen/Qwen2.5-VL-3B-Instruct")
    assert licence_of("somebody/else") is None
    assert licence_of("/models/medgemma-4b-it") == licence_of("google/medgemma-4b-it")
    assert licence_of("tiny") is not None
    assert licence_of("/models/tiny") is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("google/medgemma-4b-it", "google/medgemma-4b-it"),
        ("tiny", "tiny"),
        (str(tiny.FOLDER), "tiny"),
        ("/home/anna/models/basis", "basis"),
        ("~/models/basis/", "basis"),
        ("../earlier", "earlier"),
        (r"C:\Users\anna\basis", "basis"),
        ("/home/anna/runs/first/stages/sft/weights", "first"),
        ("../first/stages/export/adapter", "first"),
        ("/home/anna/stages/films.json", "films.json"),  # a folder of this name alone makes no run
    ],
)
def test_the_public_name_of_a_model_is_not_a_path(source: str, name: str) -> None:
    assert public_name(source) == name


def test_a_recipe_from_the_hub_keeps_its_names(tmp_path: Path) -> None:
    tables = {"data": {"synthetic": None, "train": "hub:flaviagiammarino/vqa-rad#train", "task": "vqa"}}
    shown = tomllib.loads(public_recipe(small_recipe(tmp_path, tables)))
    assert shown["data"]["train"] == "hub:flaviagiammarino/vqa-rad#train"
    assert str(tmp_path) not in json.dumps(shown)


def test_a_path_is_hidden_only_where_it_ends() -> None:
    assert scrub("in /data/one/x, not /data/one-more", Path("/data/one")) == "in [path]/x, not /data/one-more"


def test_a_cell_cannot_break_its_table() -> None:
    assert table(["a", "b"], [["x|y\n<b>", "1"]]).splitlines()[2] == r"| x\|y \<b\> | 1 |"


def test_the_card_needs_no_network() -> None:
    assert constants.is_offline_mode()
