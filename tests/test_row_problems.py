"""Problems of rows reach the user with code, value, row and remedy, and ambiguous values do not pass."""

import base64
import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.cli import main
from toolkit.data.json_stream import repeated_key
from toolkit.data.result import DataResult
from toolkit.errors import MAX_CHARACTERS, DataError, Problem, RecipeError, shorten
from toolkit.evaluation.unlabelled_rows import Constants, read_unlabelled_rows
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder

Row = dict[str, Any]
VALUE = {"letter": "B", "content": "Edema"}


def row(number: int, **change: Any) -> Row:
    return {
        "id": f"id{number}",
        "question": f"What is {number}?",
        "answer": "edema",
        "image": f"{number}.png",
        **change,
    }


def write(file: Path, rows: list[Row]) -> str:
    if file.suffix == ".csv":
        pandas.DataFrame(rows).to_csv(file, index=False)
    elif file.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(file)
    else:
        file.write_text(json.dumps(rows), encoding="utf-8")
    return str(file)


def recipe(train: str, **data: Any) -> Recipe:
    table = {"task": "vqa", "train": train, "split": {"test": 0.0}, **data}
    return make_recipe({"run": {"name": "x"}, "data": table})


def answers(wanted: Recipe) -> list[str]:
    return [sample.reference["answer"] for sample in load_data(wanted).train]


def faulty(folder: Path) -> str:
    """Write 30 rows with images. The answer of one is an object."""
    for number in range(30):
        Image.new("L", (32, 32), number).save(folder / f"{number}.png")
    return write(folder / "rows.json", [row(number) if number != 7 else row(7, answer=VALUE) for number in range(30)])


def test_a_warning_has_code_value_row_and_remedy_of_the_problem(tmp_path: Path) -> None:
    data = load_data(recipe(faulty(tmp_path)))
    (dropped,) = data.dropped
    assert (dropped.code, dropped.count) == ("data.value_not_text", 1)
    assert (dropped.examples, dropped.values) == (("row 7",), (repr(VALUE),))
    (problem,) = data.warnings
    assert problem.code == "data.value_not_text"
    for part in ("row 7", repr(VALUE), "the column answer", dropped.remedy):
        assert part in str(problem)
    assert dropped.remedy


def test_inspect_and_the_run_folder_have_value_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = faulty(tmp_path)
    tables: dict[str, Row] = {"data": {"task": "vqa", "synthetic": None, "train": source, "split": {"test": 0.2}}}
    wanted = small_recipe(tmp_path, tables)
    with context_of(wanted) as context:
        (dropped,) = context.run.result("data", DataResult).dropped
    stored = json.loads((RunFolder(wanted.run_folder).path / "stages/data/done.json").read_text(encoding="utf-8"))
    assert repr(VALUE) in json.dumps(stored).replace('\\"', '"')
    assert (dropped.values, dropped.examples, bool(dropped.remedy)) == ((repr(VALUE),), ("row 7",), True)
    (tmp_path / "look.toml").write_text(
        f'[run]\nname = "x"\n[data]\ntask = "vqa"\ntrain = "{source}"\n[evaluate]\n', encoding="utf-8"
    )
    with pytest.raises(SystemExit) as ended:
        main(["data", "inspect", str(tmp_path / "look.toml")])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(repr(VALUE)) == 1
    assert dropped.remedy in printed


def test_the_error_of_too_many_unusable_rows_has_value_row_code_and_remedy(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [row(0), row(1, answer={"a": "yes"}), row(2, question="")])
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(recipe(source))
    for part in ("row 1: {'a': 'yes'}", "[data.value_not_text]", "Store one text", "[data.question_missing]"):
        assert part in str(caught.error)
    assert caught.problem.value == "2 of 3"


def test_row_numbers_are_those_of_the_file_after_a_record_that_is_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [5, row(0), row(1, answer={"a": "yes"})])  # type: ignore[list-item]
    dropped = {one.code: one for one in load_data(recipe(source, max_dropped=0.9)).dropped}
    assert dropped["data.value_not_text"].shown == ("row 2: {'a': 'yes'}",)


def test_no_message_has_base64_or_more_than_2000_characters() -> None:
    image = base64.b64encode(random.Random(1).randbytes(30_000)).decode()
    wrapped = base64.encodebytes(random.Random(1).randbytes(300)).decode()
    for value in (image, wrapped, {"url": f"data:image/png;base64,{image}"}, [image], random.Random(1).randbytes(9000)):
        text = str(Problem("data.x", "must be text", "a.json", value, "Correct it."))
        assert text.endswith("Correct it.")
        assert len(text) < 300
        assert image[:40] not in text
        assert image[60:90] not in text
    assert image[:40] not in str(DataError("data.x", f"must not be {image}", place=image))
    assert len(str(DataError("data.x", "wrong " * 9000, remedy="Correct it."))) <= MAX_CHARACTERS
    problems = [Problem("data.x", "must be text", f"key {number}", "x" * 100) for number in range(100)]
    text = str(RecipeError(problems))
    assert len(text) <= MAX_CHARACTERS
    assert "more lines" in text
    assert text.endswith("Correct the recipe.")


@pytest.mark.parametrize(
    "text",
    [
        "/home/user/Studies/PatientImages2024/chest/frontal/view1/image0001/original/resized/final/" * 2,
        "0123456789abcdef" * 8,
        "Thequickbrownfoxjumpsoverthelazydog" * 3,
    ],
)
def test_paths_digests_and_long_words_are_not_base64(text: str) -> None:
    assert shorten(text, 500) == repr(text)


def test_one_column_is_not_question_and_answer(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [row(0)])
    with raises(DataError, "data.column_used_twice") as caught:
        load_data(recipe(source, columns={"question": "answer", "answer": "answer"}))
    assert caught.problem.value == "answer"
    assert answers(recipe(source, columns={"id": "image", "image": "image"})) == ["edema"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_integers_with_gaps_stay_integers_in_every_split(tmp_path: Path, suffix: str) -> None:
    rows = [row(n, answer=n if n != 3 else None, question_type=n if n else None) for n in range(30)]
    train = write(tmp_path / f"train{suffix}", rows)
    rows = [row(number, answer=float(number), question_type=None) for number in range(100, 130)]
    data = load_data(recipe(train, test=write(tmp_path / f"test{suffix}", rows)))
    assert data.train[1].fields["question_type"] == "1"
    assert [sample.reference["answer"] for sample in data.train][:4] == ["0", "1", "2", "4"]
    assert {sample.reference["answer"] for sample in data.test} == {str(number) for number in range(100, 130)}
    assert [one.code for one in data.warnings].count("data.whole_numbers") == 3
    assert [(one.code, one.count) for one in data.dropped] == [("data.answer_missing", 1)]


def test_measurements_keep_their_decimal_point(tmp_path: Path) -> None:
    rows = [row(0, answer=2.0), row(1, answer=2.5), row(2, answer=None), row(3, answer=3.0)]
    train = write(tmp_path / "train.csv", rows)
    assert answers(recipe(train, max_dropped=0.5)) == ["2.0", "2.5", "3.0"]
    whole = write(tmp_path / "whole.csv", [row(0, answer=2.0), row(1, answer=3.0)])
    assert answers(recipe(whole)) == ["2.0", "3.0"]
    test = write(tmp_path / "test.csv", [row(5, answer=4.0), row(6, answer=None)])
    data = load_data(recipe(train, test=test, max_dropped=0.5))
    assert [sample.reference["answer"] for sample in data.test] == ["4.0"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_truth_values_are_the_same_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    rows = [row(number, answer=number % 2 == 0) for number in range(4)]
    assert answers(recipe(write(tmp_path / f"rows{suffix}", rows))) == ["yes", "no", "yes", "no"]


def test_true_beside_another_text_or_number_is_a_text(tmp_path: Path) -> None:
    for number, other in enumerate(("edema", "1", 2.0)):
        source = write(tmp_path / f"{number}.csv", [row(0, answer="True"), row(1, answer=other)])
        assert answers(recipe(source)) == ["True", str(other)]
        (warning,) = [one for one in load_data(recipe(source)).warnings if one.code == "data.truth_value_is_text"]
        assert (warning.rule.startswith("1 row:"), "'yes'" in warning.rule) == (True, True)


def test_bytes_and_durations_of_a_table_are_no_texts(tmp_path: Path) -> None:
    for number, value in enumerate((b"yes", timedelta(days=1))):
        source = write(tmp_path / f"{number}.parquet", [row(0, answer=value), row(1, answer=value)])
        with raises(DataError, "data.too_many_unusable_rows") as caught:
            load_data(recipe(source))
        assert "data.value_not_text" in str(caught.error)


def test_numbers_of_32_bits_keep_their_digits(tmp_path: Path) -> None:
    table = pandas.DataFrame([row(n) for n in range(3)])
    table["answer"] = pandas.Series([0.1, 2.3, None], dtype="float32")
    table.to_parquet(tmp_path / "rows.parquet")
    assert answers(recipe(str(tmp_path / "rows.parquet"), max_dropped=0.5)) == ["0.1", "2.3"]


def test_json_that_is_used_as_text_is_reported_with_its_row(tmp_path: Path) -> None:
    rows = [row(0, question='["Is it edema?"]'), row(1, question="[Frontal view] Is it edema?")]
    (problem,) = load_data(recipe(write(tmp_path / "rows.csv", rows))).warnings
    assert (problem.code, problem.rule.startswith("1 row:")) == ("data.text_is_json", True)
    assert "row 0: text of 16 characters" in problem.rule


@pytest.mark.parametrize("missing", [None, "", "nan", "NaN", "<NA>"])
def test_a_missing_answer_is_no_answer(tmp_path: Path, missing: Any) -> None:
    source = write(tmp_path / "rows.json", [row(0), row(1, answer=missing)])
    data = load_data(recipe(source, max_dropped=0.5))
    assert [(one.code, one.count) for one in data.dropped] == [("data.answer_missing", 1)]


def test_different_answers_to_one_prompt_are_reported(tmp_path: Path) -> None:
    same: Row = {"question": "What is it?", "image": "a.png"}
    rows = [row(n) for n in range(20)]
    rows += [row(20, **same, answer="edema"), row(21, **same, answer="mass"), row(22, **same, answer="mass")]
    rows += [row(23), row(24, image="23.png", question="what  is 23?", answer="Edema")]
    data = load_data(recipe(write(tmp_path / "rows.json", rows)))
    (problem,) = data.warnings
    assert problem.code == "data.answers_differ"
    assert problem.rule.startswith("3 rows")
    assert "row 20 and row 21: 'edema' or 'mass'" in problem.rule
    assert problem.remedy
    again = load_data(recipe(write(tmp_path / "rows.json", rows)))
    assert again.warnings == data.warnings


def test_rows_with_another_context_have_another_prompt(tmp_path: Path) -> None:
    same: Row = {"question": "What is it?", "image": "a.png"}
    rows = [row(0, **same, answer="edema", age="5"), row(1, **same, answer="mass", age="50")]
    source = write(tmp_path / "rows.json", rows)
    assert [one.code for one in load_data(recipe(source)).warnings] == ["data.answers_differ"]
    table = {"task": "vqa", "train": source, "split": {"test": 0.0}}
    shown = make_recipe({"run": {"name": "x"}, "data": table, "prompt": {"context": ["age"]}})
    assert load_data(shown).warnings == ()


def test_two_lesions_of_one_image_in_two_rows_are_reported_although_the_question_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"image": f"{n // 2}.png", "dx": ("nv", "mel")[n % 2], "width": 64, "height": 64, "location": "upper"}
        for n in range(40)
    ]
    source = write(tmp_path / "rows.json", rows)
    table = {"task": "lesion", "train": source, "split": {"test": 0.0}}
    data = load_data(make_recipe({"run": {"name": "x"}, "data": table}))
    (problem,) = data.warnings
    assert (problem.code, problem.rule.startswith("40 rows")) == ("data.answers_differ", True)


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_columns_of_one_field_with_different_values_are_a_problem_that_shows_both(tmp_path: Path, suffix: str) -> None:
    others = ("Edema", "edema ", None, "mass")
    rows = [row(number, correct_answer=other) for number, other in enumerate(others)]
    source = write(tmp_path / f"rows{suffix}", rows)
    data = load_data(recipe(source, max_dropped=0.5))
    assert [(one.code, one.count, one.examples) for one in data.dropped] == [("data.columns_contradict", 1, ("row 3",))]
    assert "{'answer': 'edema', 'correct_answer': 'mass'}" in data.dropped[0].values[0]
    assert len(answers(recipe(source, columns={"answer": "answer"}))) == 4


def test_options_and_answers_of_multiple_choice_are_compared_by_their_meaning(tmp_path: Path) -> None:
    mcq = {"options": ["edema", "mass"], "correct_answer": "A"}
    rows = [row(0, **mcq), row(1, **mcq | {"answer": "mass"}), row(2, **mcq, choices=["mass", "edema"])]
    data = load_data(recipe(write(tmp_path / "rows.json", rows), task="mcq", max_dropped=0.7))
    assert [(one.code, one.examples) for one in data.dropped] == [
        ("data.columns_contradict", ("row 1",)),
        ("data.columns_contradict", ("row 2",)),
    ]


@pytest.mark.parametrize("form", ["lines", "list", "object"])
def test_a_key_that_a_record_has_twice_is_a_problem_that_shows_the_key(tmp_path: Path, form: str) -> None:
    records = [json.dumps({name: value for name, value in row(number).items() if name != "id"}) for number in range(4)]
    records[1] = records[1].replace("{", '{"answer": "mass", ')
    records[2] = records[2].replace("{", '{"answer": "edema", "note": "a \\"b\\": c", ')
    members = ", ".join(f'"q{number}": {record}' for number, record in enumerate(records))
    text = {
        "lines": "\n".join(records),
        "list": f"[{', '.join(records)}]",
        "object": f"{{{members}}}",
    }[form]
    file = tmp_path / ("rows.jsonl" if form == "lines" else "rows.json")
    file.write_text(text, encoding="utf-8")
    data = load_data(recipe(str(file), max_dropped=0.5))
    assert [(one.code, one.count) for one in data.dropped] == [("data.key_repeated", 1)]
    assert "answer twice" in data.dropped[0].values[0]
    assert len(data.train) == 3


def test_the_index_column_of_pandas_is_no_field_of_the_task(tmp_path: Path) -> None:
    pandas.DataFrame([{"question": f"{n}?", "answer": "edema", "image": "0.png"} for n in range(3)]).to_csv(
        tmp_path / "vqa.csv"
    )
    samples = list(load_data(recipe(str(tmp_path / "vqa.csv"))).train)
    assert [(one.reference["answer"], one.reference.get("alternatives")) for one in samples] == [("edema", None)] * 3
    assert [one.fields for one in samples] == [{"question": f"{n}?"} for n in range(3)]
    rows = [{"question": f"{n}?", "options": ["mass", "edema", "cyst"], "answer": "cyst"} for n in range(3)]
    pandas.DataFrame(rows).to_csv(tmp_path / "mcq.csv")
    data = load_data(recipe(str(tmp_path / "mcq.csv"), task="mcq"))
    assert [sample.reference["letter"] for sample in data.train] == ["C"] * 3
    assert [len(sample.images) for sample in data.train] == [0] * 3


@pytest.mark.parametrize("words", [(True, False), ("True", "False"), ("TRUE", "FALSE"), ("true", "false")])
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_truth_values_of_every_program_are_yes_and_no(tmp_path: Path, suffix: str, words: tuple[Any, Any]) -> None:
    rows = [row(number, answer=words[number % 2]) for number in range(4)]
    assert answers(recipe(write(tmp_path / f"rows{suffix}", rows))) == ["yes", "no", "yes", "no"]
    rows = [{**one, "options": '["No", "Yes"]'} for one in rows]
    data = load_data(recipe(write(tmp_path / f"mcq{suffix}", rows), task="mcq"))
    assert [sample.reference["letter"] for sample in data.train] == ["B", "A", "B", "A"]


def test_a_text_that_can_be_a_missing_value_is_reported(tmp_path: Path) -> None:
    data = load_data(recipe(write(tmp_path / "rows.json", [row(0, answer="None"), row(1, answer="None"), row(2)])))
    assert [sample.reference["answer"] for sample in data.train] == ["None", "None", "edema"]
    (warning,) = data.warnings
    assert (warning.code, warning.rule.startswith("2 rows:")) == ("data.text_can_be_missing", True)
    rows = [row(0, options=["None", "Edema"], answer="None")]
    assert load_data(recipe(write(tmp_path / "mcq.json", rows), task="mcq")).warnings == ()


def test_a_column_that_pandas_renamed_must_agree(tmp_path: Path) -> None:
    rows = [row(0, **{"answer.1": "edema"}), row(1, **{"answer.1": "mass"})]
    data = load_data(recipe(write(tmp_path / "rows.csv", rows), max_dropped=0.5))
    assert [(one.code, one.examples) for one in data.dropped] == [("data.columns_contradict", ("row 1",))]


def test_a_key_that_a_converted_record_has_twice_is_a_problem(tmp_path: Path) -> None:
    turns = '[{{"from": "human", "value": "<image>What?"}}, {{"from": "gpt", "value": "edema"{}}}]'
    records = [f'{{"id": "{n}", "image": "{n}.png", "conversations": {turns.format("")}}}' for n in range(2)]
    records.append(records[0].replace('"image"', '"image": "9.png", "image"'))
    records.append(records[0].replace('"edema"', '"edema", "value": "mass"'))
    file = tmp_path / "rows.json"
    file.write_text(f"[{', '.join(records)}]", encoding="utf-8")
    data = load_data(recipe(str(file), max_dropped=0.5))
    assert [(one.code, one.count) for one in data.dropped] == [("data.key_repeated", 2)]
    assert "value twice" in data.dropped[0].values[1]
    question = '{"question_id": 1, "image_id": "0.png", "question": "What?", "answers": ["edema"]}'
    other = question.replace("1", "2").replace("}", ', "answers": ["mass"]}')
    file.write_text(f'{{"annotations": [{question}, {other}]}}', encoding="utf-8")
    data = load_data(recipe(str(file), max_dropped=0.5))
    assert [(one.code, one.examples) for one in data.dropped] == [("data.key_repeated", ("annotations[1]",))]


def test_an_empty_answer_of_a_conversation_is_missing(tmp_path: Path) -> None:
    rows = [{"query": f"{n}?", "response": "edema" if n else "", "images": f"{n}.png"} for n in range(2)]
    data = load_data(recipe(write(tmp_path / "rows.json", rows), max_dropped=0.5))
    assert [(one.code, one.examples) for one in data.dropped] == [("data.answer_missing", ("row 0",))]


def test_options_in_two_places_must_agree(tmp_path: Path) -> None:
    single = {"option_a": "A. Edema", "option_b": "B. mass"}
    rows = [row(n, options=["edema", "mass"], answer="B", **single) for n in range(2)]
    rows.append(row(2, options=["mass", "edema"], answer="B", **single))
    data = load_data(recipe(write(tmp_path / "rows.json", rows), task="mcq", max_dropped=0.5))
    assert [(one.code, one.examples) for one in data.dropped] == [("tasks.mcq.options_contradict", ("row 2",))]


def test_a_character_that_was_lost_is_reported(tmp_path: Path) -> None:
    rows = [row(0, answer="\u00e9panchement"), row(1, answer="\ufffdpanchement"), row(2, **{"question.1": "Where?"})]
    data = load_data(recipe(write(tmp_path / "rows.json", rows), max_dropped=0.5))
    (warning,) = [one for one in data.warnings if one.code == "data.character_lost"]
    assert "row 1: 'character 1 of 11'" in warning.rule
    assert [(one.code, one.examples) for one in data.dropped] == [("data.columns_contradict", ("row 2",))]


def test_a_prediction_reads_whole_numbers_and_truth_values_as_the_training_rows(tmp_path: Path) -> None:
    ages: list[float | None] = [40.0, None, 42.0]
    rows = [row(number, age=age, smoker="True") for number, age in enumerate(ages)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "new.csv", [row(5, age=63.0, smoker="false")])
    table = {"task": "vqa", "train": str(tmp_path / "train.csv"), "split": {"test": 0.0}}
    wanted = make_recipe({"run": {"name": "x"}, "data": table, "prompt": {"context": ["age", "smoker"]}})
    train = load_data(wanted).train
    assert [sample.fields.get("age") for sample in train] == ["40", None, "42"]
    rows_of_prediction = read_unlabelled_rows(wanted, None, tmp_path / "new.csv", None, Constants(), train.origin.whole)
    assert [(one.fields["age"], one.fields["smoker"]) for one in rows_of_prediction.samples] == [("63", "False")]


def test_keys_are_counted_in_a_deeply_nested_record() -> None:
    text = '{"a": ' * 900 + '{"b": 1, "c": 2}' + "}" * 900
    assert repeated_key(text, json.loads(text)) is None
    assert repeated_key(text.replace('"c"', '"b"'), json.loads(text.replace('"c"', '"b"'))) == "b twice"
