"""Groups: no patient is in two splits, whatever its column is called, and nothing is guessed silently."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data.loading import DataSplits
from toolkit.errors import DataError
from toolkit.recipe import Recipe

Row = dict[str, Any]


def rows(count: int = 24, first: int = 0, /, **columns: Any) -> list[Row]:
    """Return questions about one X-ray each. A column is a function of the row number."""
    return [
        {
            "question": f"Is there a finding {number}?",
            "answer": "yes" if number % 2 else "no",
            "image": f"{number}.png",
            **{name: value(number) for name, value in columns.items()},
        }
        for number in range(first, first + count)
    ]


def write(file: Path, found: Sequence[Row]) -> str:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    else:
        file.write_text(json.dumps(found), encoding="utf-8")
    return str(file)


def recipe(train: str, **data: Any) -> Recipe:
    settings = {"split": {"test": 0.4}, **data} if "test" not in data else data
    return make_recipe({"run": {"name": "x"}, "data": {"task": "vqa", "train": train, **settings}})


def patients(data: DataSplits) -> list[set[str]]:
    return [{sample.group for sample in split} for split in (data.train, data.test)]


def codes(data: DataSplits) -> list[str]:
    return [one.code for one in data.warnings]


@pytest.mark.parametrize(
    "column", ["patient_id", "Patient ID", "PatientID", "patient", "PATIENT", "subject_id", "SubjectID", "lesion_id"]
)
def test_the_usual_columns_of_the_patient_are_the_group(tmp_path: Path, column: str) -> None:
    source = write(tmp_path / "train.csv", rows(**{column: lambda number: f"P{number // 4}"}))
    data = load_data(recipe(source))
    train, test = patients(data)
    assert train | test == {f"P{number}" for number in range(6)}
    assert train
    assert test
    assert train.isdisjoint(test)
    assert data.group_columns == (column,)
    (problem,) = [one for one in data.warnings if one.code == "data.split_by_group"]
    assert column in problem.rule


def test_the_patient_comes_before_the_lesion_and_the_study_only_counts_without_both(tmp_path: Path) -> None:
    named = {"lesion_id": lambda n: f"L{n}", "StudyInstanceUID": lambda n: f"1.2.{n // 2}"}
    one = write(tmp_path / "one.json", rows(**named, Patient_ID=lambda n: f"P{n // 4}"))
    assert load_data(recipe(one)).group_columns == ("Patient_ID", "lesion_id")
    two = write(tmp_path / "two.json", rows(StudyInstanceUID=lambda n: f"1.2.{n // 2}"))
    data = load_data(recipe(two))
    assert data.group_columns == ("StudyInstanceUID",)
    assert len(patients(data)[0] | patients(data)[1]) == 12


def test_rows_without_a_patient_are_grouped_by_lesion_or_image_and_counted(tmp_path: Path) -> None:
    found = rows(patient_id=lambda n: "" if n < 3 else f"P{n // 4}", lesion_id=lambda n: "" if n == 0 else f"L{n}")
    found[2]["patient_id"] = None
    data = load_data(recipe(write(tmp_path / "train.json", found)))
    groups = patients(data)[0] | patients(data)[1]
    assert {"0.png", "L1", "L2", "P0"} <= groups
    (problem,) = [one for one in data.warnings if one.code == "data.group_empty"]
    assert problem.rule.startswith("3 rows")


def test_one_patient_alone_cannot_be_split(tmp_path: Path) -> None:
    source = write(tmp_path / "train.csv", rows(12, **{"Patient ID": lambda number: 13}))
    with raises(DataError, "data.too_few_groups") as caught:
        load_data(recipe(source))
    assert caught.problem.value == 1
    assert "Patient ID" in caught.problem.remedy
    data = load_data(recipe(source, group="none"))
    assert (len(data.train), len(data.test), data.group_columns) == (7, 5, ())


def test_one_patient_in_two_files_stops_the_run_also_as_a_number_with_zeros_or_a_decimal_point(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows(8, **{"Patient ID": lambda number: f"{number:08d}"}))
    table = pandas.DataFrame(rows(8, 100))
    table["PatientID"] = [float(number) if number < 7 else None for number in range(8)]
    test = str(tmp_path / "test.parquet")
    table.to_parquet(test)
    with raises(DataError, "data.splits_leak"):
        load_data(recipe(train, test=test))
    kept = load_data(recipe(train, test=test, on_leak="report"))
    assert kept.leaks.count("group") == 7
    assert "data.group_found" in codes(kept)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("PatientNumber", lambda n: n // 4),
        ("anon_patient", lambda n: f"a{n // 4}"),
        ("Subject", lambda n: f"S{n // 4:03d}"),
        ("case_no", lambda n: n // 4),
        ("MRN", lambda n: 100 + n // 4),
        ("PersonName", lambda n: "abcdef"[n // 4]),
    ],
)
def test_a_column_that_looks_like_a_patient_stops_the_run_with_counts(tmp_path: Path, column: str, value: Any) -> None:
    source = write(tmp_path / "train.csv", rows(**{column: value}))
    with raises(DataError, "data.patient_column_unused") as caught:
        load_data(recipe(source))
    assert caught.problem.value == column
    assert "6 values are in 24 rows" in caught.problem.rule
    assert f'data.group = "{column}"' in caught.problem.remedy
    train, test = patients(load_data(recipe(source, group=column)))
    assert train.isdisjoint(test)
    assert "data.patient_column_unused" not in codes(load_data(recipe(source, group="none")))
    assert "data.patient_column_unused" in codes(load_data(recipe(source, on_leak="report")))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("Patient Age", lambda n: n // 4),
        ("PatientSex", lambda n: "MF"[n % 2]),
        ("patientage", lambda n: n // 4),
        ("subject", lambda n: ["Radiology", "Surgery"][n % 2]),
        ("case_report", lambda n: f"Case {n // 4}"),
        ("inpatient", lambda n: n % 2),
        ("patient_note_id", lambda n: n),
        ("lowercase", lambda n: n // 4),
        ("patient_dose_mgy", lambda n: n // 4 + 0.5),
        ("edad_paciente", lambda n: n // 4),
        ("患者年龄", lambda n: n // 4),
        ("Patientenalter", lambda n: n // 4),
        ("hospital_id", lambda n: n // 4),
        ("visit_id", lambda n: 1 + n % 3),
        ("series_number", lambda n: 1 + n % 3),
    ],
)
def test_attributes_topics_and_unique_values_are_no_patients(tmp_path: Path, column: str, value: Any) -> None:
    data = load_data(recipe(write(tmp_path / "train.csv", rows(**{column: value}))))
    assert (data.group_columns, len(data.test)) == ((), 10)


def test_cases_within_one_patient_need_no_group_of_their_own(tmp_path: Path) -> None:
    source = write(tmp_path / "train.csv", rows(patient_id=lambda n: f"P{n // 4}", case_id=lambda n: n // 2))
    assert load_data(recipe(source)).group_columns == ("patient_id",)
    source = write(tmp_path / "other.csv", rows(patient_id=lambda n: f"P{n // 4}", case_id=lambda n: n // 8))
    with raises(DataError, "data.patient_column_unused"):
        load_data(recipe(source))


@pytest.mark.parametrize("folder", ["patient{:05d}/study1", "files/p10/p1000{:04d}", "sub-{:02d}"])
def test_folders_of_patients_stop_the_run_without_a_column(tmp_path: Path, folder: str) -> None:
    found = [{**row, "image": f"{folder.format(n // 4)}/{row['image']}"} for n, row in enumerate(rows())]
    source = write(tmp_path / "train.csv", found)
    with raises(DataError, "data.patient_folder_unused") as caught:
        load_data(recipe(source))
    assert "6 folders are in 24 rows" in caught.problem.rule
    assert len(load_data(recipe(source, group="none")).test) == 10
    grouped = write(tmp_path / "grouped.csv", [{**row, "patient_id": n // 4} for n, row in enumerate(found)])
    assert load_data(recipe(grouped)).group_columns == ("patient_id",)


def test_one_patient_in_two_unicode_forms_is_in_one_split(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", rows(4, patient_id=lambda n: ["Mu\u0308ller", "\uff11\uff12"][n % 2]))
    test = write(tmp_path / "test.csv", rows(4, 4, patient_id=lambda n: ["M\u00fcller", "12"][n % 2]))
    with raises(DataError, "data.splits_leak"):
        load_data(recipe(train, test=test))


@pytest.mark.parametrize("column", ["hadm_id", "accession_number", "SeriesInstanceUID", "exam_id", "slide_id"])
def test_images_of_one_examination_are_not_split_without_a_column_of_patients(tmp_path: Path, column: str) -> None:
    columns = {column: lambda n: f"1.2.840.{n // 4}"}
    with raises(DataError, "data.patient_column_unused"):
        load_data(recipe(write(tmp_path / "train.csv", rows(**columns))))
    # The numbers of a patient's examinations can be those of another patient.
    source = write(tmp_path / "patients.csv", rows(**columns, patient_id=lambda n: f"P{n // 2}"))
    assert load_data(recipe(source)).group_columns == ("patient_id",)


def test_a_patient_like_column_is_compared_between_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", rows(8, case=lambda n: f"c{n // 2}"))
    other = write(tmp_path / "other.json", rows(8, 100, case=lambda n: f"c{n // 2}"))
    assert len(load_data(recipe(train, test=other)).test) == 8
    same = write(tmp_path / "same.json", rows(8, 100, case=lambda n: f"c{(n - 100) // 4}"))
    with raises(DataError, "data.patient_column_unused") as caught:
        load_data(recipe(train, test=same))
    assert "2 values are in 12 rows" in caught.problem.rule


def test_files_with_different_groups_are_reported(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", rows(8, patient_id=lambda n: f"P{n}"))
    test = write(tmp_path / "test.json", rows(8, 100))
    data = load_data(recipe(train, test=test))
    assert "data.group_differs" in codes(data)


def test_a_column_named_none_is_ambiguous(tmp_path: Path) -> None:
    source = write(tmp_path / "train.json", rows(none=lambda n: f"P{n // 4}"))
    with raises(DataError, "data.group_is_ambiguous"):
        load_data(recipe(source, group="none"))


def test_the_message_about_a_group_never_has_its_value(tmp_path: Path) -> None:
    found = rows(patient_id=lambda n: [f"MUELLER{n}"] if n < 2 else f"P{n}")
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(recipe(write(tmp_path / "train.json", found)))
    assert "data.value_not_text" in str(caught.error)
    assert "MUELLER" not in str(caught.error)


def test_the_lesion_task_groups_as_every_other_task(tmp_path: Path) -> None:
    found = [
        {"image": f"{n}.png", "dx": "nv", "pid": f"P{n // 4}", "lesion_id": f"L{n}", "width": 8, "height": 8}
        for n in range(24)
    ]
    source = write(tmp_path / "train.json", found)
    data: Row = {"task": "lesion", "train": source, "columns": {"patient": "pid"}, "split": {"test": 0.4}}
    splits = load_data(make_recipe({"run": {"name": "x"}, "data": data}))
    train, test = patients(splits)
    assert train | test == {f"P{number}" for number in range(6)}
    assert train.isdisjoint(test)
    assert splits.group_columns == ("pid", "lesion_id")


@pytest.mark.parametrize(
    "column",
    [
        *(
            "participant_id",
            "pid",
            "donor_id",
            "empi_anon",
            "pat_id",
            "PTID",
            "hospital_number",
            "medical_record_number",
        ),
        *("paciente_id", "Código do paciente", "codice_paziente", "Patientennummer", "Fallnummer", "hasta_no"),
        *(
            "patiënt_nummer",
            "numéro_dossier",
            "患者ID",
            "病历号",
            "患者番号",
            "환자번호",
            "номер_пациента",
            "رقم المريض",
        ),
    ],
)
def test_other_names_of_patients_stop_the_run(tmp_path: Path, column: str) -> None:
    source = write(tmp_path / "train.csv", rows(**{column: lambda number: 100 + number // 4}))
    with raises(DataError, "data.patient_column_unused"):
        load_data(recipe(source))


@pytest.mark.parametrize("group", ["study", "none"])
def test_patients_in_two_files_are_counted_if_the_group_is_another_column(tmp_path: Path, group: str) -> None:
    columns = {"patient_id": lambda number: number // 4, "study": lambda number: f"S{number}"}
    train = write(tmp_path / "train.csv", rows(10, **columns))
    test = write(tmp_path / "test.csv", rows(10, 10, **columns))
    warnings = {one.code: one for one in load_data(recipe(train, test=test, group=group)).warnings}
    # Rows 8 to 11 are of patient 2, who alone is in both files.
    assert "1 patient" in warnings["data.patient_in_two_splits"].rule
    assert "4 rows" in warnings["data.patient_in_two_splits"].rule
    other = write(tmp_path / "other.csv", rows(8, 12, **columns))
    assert "data.patient_in_two_splits" not in codes(load_data(recipe(train, test=other, group=group)))
