"""ISIC archive and challenges to rows: every kind of table, joined groups, features, duplicates."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import measure as sk

from tests.helpers.cli import call
from tests.helpers.downloads import box_mask, isic, note
from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import DataError
from toolkit.pipeline.prepare_data import inspect_data
from toolkit.prepare import PrepareRequest, PrepareResult, prepare_isic
from toolkit.prepare.isic_diagnoses import Classes
from toolkit.runfolder import no_progress
from toolkit.tasks.lesion.diagnoses import load_labels


def prepare_rows(
    source: Path, stage: Any = 1, classes: Classes | None = None
) -> tuple[dict[str, dict[str, Any]], PrepareResult]:
    out = source.parent / f"out{stage}{classes or ''}"
    prepared = prepare_isic(source, stage, PrepareRequest(out), classes)
    return {row["image_name"]: row for row in json.loads((out / f"isic_stage{stage}.json").read_text())}, prepared


ARCHIVE = (
    "isic_id,attribution,age_approx,anatom_site_general,benign_malignant,clin_size_long_diam_mm,diagnosis_1,diagnosis_2,"
    "diagnosis_3,diagnosis_4,diagnosis_5,image_type,lesion_id,patient_id,sex\n"
    'ISIC_1,"Some, Hospital",85.0,lower extremity,malignant,7.5,Malignant,Epidermal,Squamous cell carcinoma,,,'
    "dermoscopic,IL_1,IP_1,male\n"
    "ISIC_2,Other,,,,,Benign,,,,,dermoscopic,,,\n"
    "ISIC_3,Other,,,,,,,,,,dermoscopic,,,\n"
)


def test_metadata_of_the_archive_become_rows_of_both_stages(tmp_path: Path) -> None:
    source = isic(tmp_path, ["ISIC_1", "ISIC_2", "ISIC_3"], ["ISIC_1_Segmentation"], metadata=ARCHIVE)
    rows, prepared = prepare_rows(source)
    one = rows["ISIC_1"]
    assert (one["diagnosis"], one["location"]) == ("Squamous cell carcinoma", "upper-left")
    assert one["size"] == "7.5 mm long diameter, 4.0 % of the image"  # 12 x 9 of 60 x 45
    assert [one[key] for key in ("lesion_id", "patient_id", "age", "sex", "site", "group")] == [
        *("IL_1", "IP_1", 85.0, "male", "lower extremity", "IP_1"),
    ]
    assert one["mask"] == "Data/GroundTruth/ISIC_1_Segmentation.png"
    assert set(rows) == {"ISIC_1"}  # ISIC_2 is only known as benign
    assert note(prepared, "data.diagnosis_not_specific") == 1
    assert note(prepared, "data.description_missing") == 2
    malignancies, _ = prepare_rows(source, classes="malignancy")
    assert {name: row["diagnosis"] for name, row in malignancies.items()} == {"ISIC_1": "malignant", "ISIC_2": "benign"}
    assert set(malignancies["ISIC_2"]) == {"image_name", "diagnosis", "image", "width", "height", "group", "split"}
    second, prepared = prepare_rows(source, stage=2)
    assert list(second) == ["ISIC_1"]
    assert second["ISIC_1"]["bbox"] == [3, 3, 15, 12]
    assert not {"size", "features", "confidence"} & set(second["ISIC_1"])
    assert note(prepared, "data.box_missing") == 2
    assert prepared.image_root == source.resolve()


ONE_HOT_2018 = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,1.0,0,0,0,0,0,0\nISIC_2,0,0,0,1.0,0,0,0\n"
ONE_HOT_2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_1,0,0,0,0,0,0,0,1.0,0\nISIC_2,0,1.0,0,0,0,0,0,0,0\n"
SLICE_3D = "isic_id,target,lesion_id,patient_id,age_approx,iddx_full,iddx_1,iddx_2,iddx_3,iddx_4\n"
BCC = "Basal cell carcinoma"
BCC_2024 = f"Malignant::Adnexal::{BCC},Malignant,Malignant adnexal epithelial proliferations - Follicular,{BCC}"
BCN = "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,split\n"
OLD = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"


@pytest.mark.parametrize(
    ("table", "diagnoses"),
    [
        ("ISIC_1,benign\nISIC_2,malignant\n", ["benign", "malignant"]),
        ("ISIC_1,0.0\nISIC_2,1.0\n", ["benign", "malignant"]),
        (
            "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.0,1.0\nISIC_2,0.0,0.0\n",
            ["seborrheic keratosis", "nevus"],
        ),
        (ONE_HOT_2018, ["melanoma", "actinic keratosis"]),
        (ONE_HOT_2019, ["squamous cell carcinoma", "melanocytic nevus"]),
        (
            f"{OLD}ISIC_1,IP_1,male,45.0,torso,unknown,benign,0\nISIC_2,IP_2,,,,nevus,benign,0\n",
            [None, "nevus"],
        ),
        ("ISIC_ID,Target\nISIC_1.jpg,1\nISIC_2.jpg,0\n", ["malignant", "benign"]),
        (f"{SLICE_3D}ISIC_1,0,,IP_1,50,Benign,Benign,,,\nISIC_2,1,IL_1,IP_2,60,{BCC_2024},\n", [None, BCC]),
        (f"{SLICE_3D}ISIC_1,0,,IP_1,50,Benign,Benign,,,\nISIC_2,0,,IP_2,60,Benign,Benign,,,\n", ["benign", "benign"]),
        (f"{BCN}ISIC_1.jpg,55.0,torso,MEL,BCN_1,,male,train\nISIC_2.jpg,,,SCC,BCN_2,,,train\n", ["MEL", "SCC"]),
    ],
    ids=[
        *("2016", "2016 as numbers", "2017", "2018", "2019", "2020", "other case", "2024"),
        *("2024 without diagnoses", "BCN20000"),
    ],
)
def test_tables_of_the_challenges_give_their_diagnoses(tmp_path: Path, table: str, diagnoses: list[str]) -> None:
    rows, _ = prepare_rows(isic(tmp_path, ["ISIC_1", "ISIC_2"], truth=table))
    assert [rows.get(name, {}).get("diagnosis") for name in ("ISIC_1", "ISIC_2")] == diagnoses


def test_tables_are_joined_and_differing_values_are_counted(tmp_path: Path) -> None:
    source = isic(
        tmp_path,
        ["ISIC_1", "ISIC_2", "ISIC_4"],
        a_truth="image,MEL,NV\nISIC_1,1.0,0\nISIC_2,0,0\nISIC_4,0,1\n",
        b_lesions="image,lesion_id\nISIC_1,L1\nISIC_2,L1\n",
        c_people="image,age_approx,sex\nISIC_1,40,female\nISIC_2,40,female\n",
        d_people="image,age_approx,sex\nISIC_1,40.0,male\n",
        e_other="colour,taste\nred,sweet\n",
    )
    rows, prepared = prepare_rows(source)
    assert [rows["ISIC_1"][key] for key in ("diagnosis", "lesion_id", "sex")] == ["melanoma", "L1", "female"]
    assert note(prepared, "data.cells_differ") == 1
    assert note(prepared, "data.table_layout_unknown") == 1
    assert note(prepared, "data.class_not_unique") == 1
    assert set(rows) == {"ISIC_1", "ISIC_4"}  # of ISIC_2 nothing is known that stage 1 says


@pytest.mark.parametrize("table", ["image,MEL,NV\nISIC_1,0.2,0.8\nISIC_2,0.9,0.1\n", "isic_id,target\nISIC_2,0.3\n"])
def test_predictions_beside_the_ground_truth_are_no_diagnoses(tmp_path: Path, table: str) -> None:
    truth = "image,MEL,NV\nISIC_1,1.0,0.0\n"
    rows, prepared = prepare_rows(isic(tmp_path, ["ISIC_1", "ISIC_2"], a_truth=truth, z_submission=table))
    assert {name: row["diagnosis"] for name, row in rows.items()} == {"ISIC_1": "melanoma"}
    assert note(prepared, "data.table_of_probabilities") == 1


@pytest.mark.slow
def test_a_lesion_of_a_patient_keeps_its_images_together(tmp_path: Path) -> None:
    lines = [f"ISIC_{i},nevus,{f'P{i // 4}' if i % 2 else ''},L{i // 2}" for i in range(80)]
    table = "image,diagnosis,patient_id,lesion_id\n" + "\n".join(lines) + "\n"
    rows, prepared = prepare_rows(isic(tmp_path, [f"ISIC_{i}" for i in range(80)], meta=table))
    # Images 4k to 4k + 3: two with the patient's name, and two of the lesion of one of those.
    for i in range(80):
        assert rows[f"ISIC_{i}"]["group"] == f"P{i // 4}"
        assert rows[f"ISIC_{i}"]["split"] == rows[f"ISIC_{i - i % 4}"]["split"]
    assert sum(prepared.groups.values()) == 20
    assert prepared.group == "group"


def test_features_come_from_columns_and_from_masks_that_are_not_empty(tmp_path: Path) -> None:
    table = 'image,features,concerning_features,confidence\nISIC_1,"streaks; blue veil",regression,0.9\nISIC_2,,,high\n'
    masks = ["ISIC_1_attribute_milia_like_cyst", "ISIC_1_attribute_streaks", "ISIC_2_segmentation"]
    source = isic(tmp_path, ["ISIC_1", "ISIC_2"], masks, meta=table)
    cv2.imwrite(str(source / "Data/GroundTruth/ISIC_1_attribute_globules.png"), box_mask())
    cv2.imwrite(str(source / "Data/GroundTruth/ISIC_2_attribute_globules.png"), box_mask())
    rows, prepared = prepare_rows(source)
    assert rows["ISIC_1"]["features"] == ["streaks", "blue veil", "milia like cyst"]
    assert rows["ISIC_1"]["concerning_features"] == ["regression"]
    assert rows["ISIC_2"]["features"] == []  # looked for, and not there
    assert note(prepared, "data.cell_not_number") == 1
    parquet = pq.read_table(source.parent / "out1" / "isic_stage1.parquet").to_pylist()
    assert [row["features"] for row in parquet] == [rows[name]["features"] for name in rows]


def test_copies_are_left_out(tmp_path: Path) -> None:
    names = ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_1_downsampled", "ISIC_5_superpixels"]
    table = "image,diagnosis\nISIC_1,nevus\nISIC_2,nevus\nISIC_3,nevus\nISIC_1_downsampled,nevus\n"
    pairs = "image_name_1,image_name_2\nISIC_1,ISIC_2\nISIC_2,ISIC_3\nISIC_3,ISIC_1\n"
    rows, prepared = prepare_rows(isic(tmp_path, names, meta=table, duplicates=pairs))
    assert set(rows) == {"ISIC_1"}
    assert (note(prepared, "data.image_downsampled"), note(prepared, "data.image_duplicated")) == (1, 2)


def test_a_downsampled_image_without_a_full_size_image_is_a_row_of_its_own(tmp_path: Path) -> None:
    table = "image,MEL,NV\nISIC_1_downsampled,1.0,0.0\nISIC_2,0.0,1.0\nISIC_3_downsampled,1.0,0.0\n"
    names = ["ISIC_1_downsampled", "ISIC_2", "ISIC_3", "ISIC_3_downsampled"]
    rows, prepared = prepare_rows(isic(tmp_path, names, truth=table))
    # The full-size ISIC_3 has no row, so its copy with a diagnosis is used.
    assert {name: row["diagnosis"] for name, row in rows.items()} == {
        "ISIC_1_downsampled": "melanoma",
        "ISIC_2": "melanocytic nevus",
        "ISIC_3_downsampled": "melanoma",
    }
    assert note(prepared, "data.image_downsampled") == 0


def test_a_class_is_no_member_of_another_class(tmp_path: Path) -> None:
    levels = [
        ("Malignant", "Melanocytic", "Melanoma, NOS", ""),
        ("Malignant", "Melanocytic", "Melanoma in situ", ""),
        ("Benign", "Melanocytic", "Nevus", ""),
        ("Benign", "Melanocytic", "Nevus", "Nevus, Combined"),
        ("Benign", "Epidermal", "Solar lentigo", ""),
        ("Benign", "Epidermal", "", ""),
        ("Benign", "", "", ""),
    ]
    lines = [
        f"ISIC_{number},{','.join(f'{chr(34)}{one}{chr(34)}' for one in row)}" for number, row in enumerate(levels)
    ]
    table = "\n".join(["isic_id,diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4", *lines]) + "\n"
    rows, prepared = prepare_rows(isic(tmp_path, [f"ISIC_{number}" for number in range(7)], metadata=table))
    assert {row["diagnosis"] for row in rows.values()} == {
        *("Melanoma, NOS", "Melanoma in situ", "Nevus", "Nevus, Combined", "Solar lentigo"),
    }
    assert {name: sum(counts.values()) for name, counts in prepared.classes.items()} == {
        "melanoma": 2,
        "melanocytic nevus": 2,
        "Solar lentigo": 1,
    }
    assert note(prepared, "data.diagnosis_not_specific") == 2
    assert prepared.labels is not None
    found = load_labels(prepared.labels)
    assert [found.find(row["diagnosis"]) for _, row in sorted(rows.items())] == [
        "mel",
        "mel",
        "nv",
        "nv",
        "solar_lentigo",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, "malignancy"])
def test_the_printed_section_of_a_recipe_loads_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: str | None
) -> None:
    names = ["lentigo NOS", "nevus", "melanoma", "unknown"]
    lines = [
        f"ISIC_{i},IP_{i},male,45,torso,{names[i % 4]},{'malignant' if i % 4 == 2 else 'benign'}," for i in range(24)
    ]
    source = isic(tmp_path, [f"ISIC_{i}" for i in range(24)], truth=OLD + "\n".join(lines) + "\n")
    chosen = ["--classes", classes] if classes else []
    command = ["data", "prepare", "isic", "--source", str(source), "--stage", "1", "--out", str(tmp_path / "out")]
    assert call([*command, *chosen]) == 0
    section = capsys.readouterr().out.partition("for a recipe:")[2]
    file = tmp_path / "recipe.toml"
    file.write_text(f'[run]\nname = "one"\n[model]\nname = "tiny"\n[sft]\n{section}')
    data, _, _ = inspect_data(load_recipe(file), no_progress)
    assert len(data.train) + len(data.validation) + len(data.test) == (24 if classes else 18)
    assert not data.dropped
    found = {sample.reference["diagnosis"] for split in (data.train, data.validation, data.test) for sample in split}
    assert found == ({"benign", "malignant"} if classes else {"lentigo_nos", "nv", "mel"})


def test_masks_without_any_table_are_enough_and_are_as_scikit_image_sees_them(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "skin" / "isic2017"
    prepared = prepare_isic(source, 2, PrepareRequest(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "isic_stage2.json").read_text())
    assert (len(rows), note(prepared, "data.diagnosis_missing")) == (9, 9)
    for row in rows:
        mask = np.asarray(Image.open(source / row["mask"]).convert("L")) > 127
        region = max(sk.regionprops(sk.label(mask, connectivity=2)), key=lambda one: one.area)
        y1, x1, y2, x2 = region.bbox
        assert row["bbox"] == [x1, y1, x2, y2]
        assert row["area_fraction"] == pytest.approx(mask.mean(), abs=1e-6)


def test_an_unrecognized_folder_is_reported_with_its_files_and_the_expected_columns(tmp_path: Path) -> None:
    source = isic(tmp_path, ["photo"], things="colour,taste\nred,sweet\n")
    with raises(DataError, "data.isic_not_recognized") as caught:
        prepare_isic(source, 1, PrepareRequest(tmp_path / "out"))
    for words in ("photo.jpg", "things.csv: colour,taste", "isic_id", "diagnosis_1", "AKIEC", "_segmentation.png"):
        assert words in str(caught.error)


def test_tables_whose_images_are_elsewhere_are_reported(tmp_path: Path) -> None:
    with raises(DataError, "data.isic_not_recognized") as caught:
        prepare_isic(isic(tmp_path, ["other"], truth=ONE_HOT_2018), 1, PrepareRequest(tmp_path / "out"))
    assert "name 2 images" in caught.problem.remedy


def test_output_below_the_source_is_not_read_again(tmp_path: Path) -> None:
    source = isic(tmp_path, ["ISIC_1", "ISIC_2"], ["ISIC_1_segmentation"], truth=ONE_HOT_2018)
    first = prepare_isic(source, 1, PrepareRequest(source / "out"))
    again = prepare_isic(source, 1, PrepareRequest(source / "out"))
    assert again == first
    with raises(DataError, "data.output_is_source") as caught:
        prepare_isic(source, 1, PrepareRequest(source))
    assert caught.problem.value == str(source)
