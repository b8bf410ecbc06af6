"""GUI steps: rows in every spelling, order and gaps, prompts without reference, answers, agent memory."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, load_recipe
from tests.helpers.stepping import LOAD, SIZE, row, steps_recipe, task_rows, write_csv
from toolkit.data.sample import Answer, Sample
from toolkit.errors import NOTHING, DataError, RecipeError
from toolkit.images import ImageStore
from toolkit.models.chat_template import render_prompt
from toolkit.models.hf import HfBackend
from toolkit.models.prompts import Prompts
from toolkit.tasks import TASKS
from toolkit.tasks.steps import EMPTY, AgentMemory, advance, replay
from toolkit.tasks.steps.agent_memory import MAX_ITEMS, MAX_KEYS, MAX_TEXT, compact, thin
from toolkit.tasks.steps.json_format import parse_point_or_box
from toolkit.tasks.steps.metrics import repeat_last
from toolkit.tasks.steps.parse import MAX_CHARACTERS, NO_ACTION, NO_JSON, REPAIRED, SEVERAL, TOO_LONG, UNKNOWN_ACTION

STEPS = TASKS["steps"]
QWEN = "Qwen/Qwen3-VL-8B-Instruct"
UNNUMBERED = "1 task with unnumbered steps, in the order of the file (for example the task of row 0)"


def samples(folder: Path, rows: list[dict[str, Any]], steps: dict[str, Any] | None = None, **data: Any) -> list[Sample]:
    write_csv(folder, rows)
    return list(load_data(steps_recipe(folder, steps, **data)).train)


def warning_texts(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Return what is announced about the source, without its path."""
    write_csv(folder, rows)
    lines = load_data(steps_recipe(folder, max_dropped=1)).warning_texts
    return [line.removeprefix(f"{folder / 'task_results.csv'}: ") for line in lines]


def noted(folder: Path, rows: list[dict[str, Any]], steps: dict[str, Any] | None = None) -> dict[str, str]:
    """Code -> rule of the warnings about rows that can be used."""
    write_csv(folder, rows)
    return {one.code: one.rule for one in load_data(steps_recipe(folder, steps, max_dropped=1)).warnings}


def dropped(folder: Path, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Code -> rows that are left out because of it."""
    write_csv(folder, rows)
    return {one.code: one.count for one in load_data(steps_recipe(folder, max_dropped=1)).dropped}


def python_dict(value: Any) -> str:
    """Return a printed dict: single quotes, None."""
    return repr(value)


def with_line_breaks(value: Any) -> str:
    """Return JSON over several lines, with line breaks inside its texts, which JSON forbids."""
    return json.dumps(value, indent=1).replace("the dialog's open", "the dialog's\nopen")


# Rows


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Return the second step of a task, read for a model that writes 0 to 1000."""
    folder = tmp_path_factory.mktemp("steps")
    write_csv(folder, task_rows(7))
    return load_data(steps_recipe(folder, model=QWEN)).train[1]


def test_a_row_becomes_a_step_with_the_memory_of_the_previous_row(step: Sample) -> None:
    assert (step.group, step.fields["question"]) == ("7", "Load scan 7 and annotate it")
    assert (step.fields["place"], step.fields["length"]) == (2, 4)
    assert step.images[0].path.name == "7_2.png"
    assert step.fields["memory"].short_term["last_action"] == "CLICK"
    assert step.fields["memory"].long_term["completed_subtasks"] == ["Load volume"]
    assert step.reference["previous"] == {"action": "CLICK", "target": "Load volume", "place": [100, 50]}
    assert (step.reference["place"], step.reference["box"]) == ([200, 150], [190, 140, 210, 160])


def test_the_target_is_one_line_in_the_order_of_the_row_with_the_models_coordinates(step: Sample) -> None:
    # 200 of 400 and 150 of 300 pixels are 500 of 1000.
    text = STEPS.target(step)
    assert "\n" not in text
    assert text.startswith('{"Short Term":{"last_action":"SCROLL",')
    assert text.endswith(
        '"Predicted":{"predicted_action":{"action":"SCROLL","target":"Axial slice","coords":[500,500]}}}'
    )
    answer = STEPS.parse(text, step)
    assert answer.values["faults"] == []
    assert set(STEPS.scores(step, answer).values()) == {1.0, None}


def test_the_first_step_has_no_memory(tmp_path: Path) -> None:
    first, *_ = samples(tmp_path, task_rows(1))
    assert first.fields["memory"] == EMPTY
    assert first.reference["previous"] is None
    assert "Short-term memory: {}" in STEPS.question(first)


@pytest.mark.parametrize("write", [python_dict, with_line_breaks])
def test_repaired_cells_have_the_same_content_and_are_counted(write: Any, tmp_path: Path) -> None:
    plain = samples(tmp_path / "plain", task_rows(1))
    repaired = samples(tmp_path / "repaired", task_rows(1, write))
    for one, other in zip(plain, repaired, strict=True):
        assert one.reference["long_term"] == other.reference["long_term"]
        assert (one.reference["action"], one.reference["place"]) == (
            other.reference["action"],
            other.reference["place"],
        )
    assert repaired[0].reference["short_term"]["last_observation"].split() == ["the", "dialog's", "open"]
    assert noted(tmp_path / "repaired", task_rows(1, write))["tasks.steps.output_repaired"].startswith("4 rows: ")


def test_jsonl_and_parquet_have_the_same_steps(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = task_rows(3)
    expected = [one.reference for one in samples(tmp_path, rows)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**r, "Output": json.loads(r["Output"])}) + "\n" for r in rows)
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        loaded = load_data(steps_recipe(tmp_path, train=str(tmp_path / name)))
        assert [one.reference for one in loaded.train] == expected


def test_a_data_set_with_other_columns_is_mapped(tmp_path: Path) -> None:
    rows = [
        {
            "episode": "e1",
            "shot": "1_1",
            "aim": "Zoom in",
            "what": "click",
            "on": "Lens",
            "rect": "[10, 20, 30, 40]",
            "Output": "",
        },
        {
            "episode": "e1",
            "shot": "1_2",
            "aim": "Zoom in",
            "what": "Zoom",
            "on": "Image",
            "rect": "",
            "Output": "",
        },
    ]
    write_csv(tmp_path, [{**one, "Image_id": one["shot"]} for one in rows])
    columns = {
        "task": "episode",
        "image": "shot",
        "question": "aim",
        "action": "what",
        "target": "on",
        "bbox": "rect",
    }
    found = load_data(
        steps_recipe(tmp_path, {"sections": ["goal", "image"], "answer": ["predicted"]}, columns=columns)
    ).train
    assert [(one.reference["action"], one.reference["target"]) for one in found] == [
        ("CLICK", "Lens"),
        ("ZOOM", "Image"),
    ]
    # Without a column of points, the centre of the box is the reference.
    assert (found[0].reference["place"], found[1].reference["place"]) == ([20, 30], None)


def test_steps_are_ordered_by_their_numbers_in_any_file_order(tmp_path: Path) -> None:
    rows = [*task_rows(1), *task_rows(2)]
    Random(0).shuffle(rows)
    found = {(one.group, one.fields["place"]): one for one in samples(tmp_path, rows)}
    assert len(found) == 8
    for (_, place), one in found.items():
        assert one.fields["memory"].long_term.get("completed_subtasks", []) == [t for _, t, _ in LOAD[: place - 1]]


def test_without_step_numbers_the_order_of_the_file_is_used_and_reported(tmp_path: Path) -> None:
    rows = task_rows(1)
    rows[2]["Grounding"] = ""
    assert "1 task with unnumbered steps, in the order of the file (for example the task of row 0)" in warning_texts(
        tmp_path, rows
    )
    assert [one.fields["place"] for one in load_data(steps_recipe(tmp_path)).train] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", ["", "step {} of 4", "1.{}"])
def test_tasks_without_any_step_number_are_reported(step: str, tmp_path: Path) -> None:
    rows = [{**one, "Grounding": "", "Step": step.format(number)} for number, one in enumerate(task_rows(1), 1)]
    assert "1 task with unnumbered steps, in the order of the file (for example the task of row 0)" in warning_texts(
        tmp_path, rows
    )


def test_integers_with_a_decimal_point_are_read_as_integers(tmp_path: Path) -> None:
    # pandas writes a column of integers with a missing value like this.
    rows = [
        {**one, "Task_id": f"{task}.0", "Image_id": f"{task}{number}.0", "Grounding": "", "Step": f"{number}.0"}
        for task in (3, 4)
        for number, one in enumerate(task_rows(task), 1)
    ]
    rows[7]["Task_id"] = "4"
    write_csv(tmp_path, rows)
    for one in rows:
        Image.new("RGB", SIZE).save(tmp_path / "images" / one["Image_id"].replace(".0", ".png"))
    found = list(load_data(steps_recipe(tmp_path, {"task_start": 4, "task_end": 4})).train)
    assert [(one.group, one.fields["place"], one.images[0].path.name) for one in found] == [
        ("4", place, f"4{place}.png") for place in (1, 2, 3, 4)
    ]
    write_csv(tmp_path, rows[::-1])
    assert [one.fields["place"] for one in load_data(steps_recipe(tmp_path)).train] == [4, 3, 2, 1] * 2


def test_nan_in_a_cell_is_a_missing_value(tmp_path: Path) -> None:
    rows = task_rows(1)
    rows[1]["Output"] = rows[1]["Output"].replace('"Axial slice"', "NaN").replace("[200, 150]", "NaN")
    rows[1]["Grounding"] = rows[1]["Grounding"].replace('"Axial slice"', "NaN").replace("[190, 140, 210, 160]", "NaN")
    second, third = samples(tmp_path, rows)[1:3]
    assert (second.reference["target"], second.reference["place"]) == (None, None)
    assert "NaN" not in STEPS.target(second) + STEPS.question(third)


def test_missing_steps_are_reported_and_the_step_after_a_gap_is_left_out(tmp_path: Path) -> None:
    rows = [one for one in [*task_rows(1), *task_rows(2)] if one["Image_id"] != "2_2"]
    assert "1 task with missing steps (for example the task of row 4 lacks step 2)" in warning_texts(tmp_path, rows)
    assert dropped(tmp_path, rows) == {"tasks.steps.memory_unknown": 1}
    kept = load_data(steps_recipe(tmp_path, max_dropped=1)).train
    assert [one.fields["place"] for one in kept if one.group == "2"] == [1, 4]
    assert {one.fields["length"] for one in kept} == {4}


def test_a_step_after_a_gap_can_have_an_empty_memory_and_is_used_if_no_memory_is_shown(tmp_path: Path) -> None:
    rows = [one for one in task_rows(2) if one["Image_id"] != "2_2"]
    empty = samples(tmp_path, rows, {"on_gap": "empty"})
    assert [one.fields["memory"] == EMPTY for one in empty] == [True, True, False]
    assert noted(tmp_path, rows, {"on_gap": "empty"})["tasks.steps.memory_shown_empty"].startswith("1 row: ")
    assert len(samples(tmp_path, rows, {"sections": ["goal", "image"]})) == 3


def test_too_many_gaps_stop_the_run(tmp_path: Path) -> None:
    with raises(DataError, "data.too_many_unusable_rows"):
        samples(tmp_path, [one for one in task_rows(2) if one["Image_id"] != "2_2"])


def test_the_first_of_repeated_steps_is_used_and_the_others_are_reported(tmp_path: Path) -> None:
    rows = [*task_rows(1), row(1, 2, (*LOAD[:1], ("ZOOM", "Image", [1, 1]), *LOAD[2:]))]
    assert "1 task with repeated steps (for example the task of row 0, step 2)" in warning_texts(tmp_path, rows)
    assert dropped(tmp_path, rows) == {"tasks.steps.step_repeated": 1}
    kept = load_data(steps_recipe(tmp_path, max_dropped=1)).train
    assert [one.reference["action"] for one in kept] == [action for action, _, _ in LOAD]


def test_numbers_may_begin_at_0(tmp_path: Path) -> None:
    rows = task_rows(1)
    for number, one in enumerate(rows):
        one["Step"] = str(number)
    found = samples(tmp_path, rows)
    assert [one.fields["place"] for one in found] == [1, 2, 3, 4]
    assert found[0].fields["memory"] == EMPTY


def test_a_previous_row_with_invalid_coordinates_still_has_its_memory(tmp_path: Path) -> None:
    rows = task_rows(1)
    rows[0] = row(1, 1, (("CLICK", "Load volume", [9000, 50]), *LOAD[1:]))
    assert dropped(tmp_path, rows) == {"tasks.steps.coordinates_outside_screenshot": 1}
    second = load_data(steps_recipe(tmp_path, max_dropped=1)).train[0]
    assert second.fields["memory"].long_term["completed_subtasks"] == ["Load volume"]
    assert second.reference["previous"] is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Task_id": ""}, "tasks.steps.task_missing"),
        ({"Instruction": " "}, "tasks.steps.goal_missing"),
        ({"Image_id": ""}, "data.image_path_missing"),
        ({"Image_id": "../secret.png"}, "data.image_outside_root"),
        ({"Image_id": "nowhere.png"}, "data.image_size_unknown"),
        ({"Output": "click on it"}, "tasks.steps.output_not_json"),
        ({"Output": "[1, 2]"}, "tasks.steps.output_not_object"),
        ({"Output": json.dumps({"Short Term": ["a"]})}, "tasks.steps.output_wrong_type"),
        ({"Output": json.dumps({"Predicted": {"action": "DANCE"}})}, "tasks.steps.action_unknown"),
        ({"Output": json.dumps({"Reason": "x"}), "Grounding": ""}, "tasks.steps.action_missing"),
        (
            {"Output": json.dumps({"Predicted": {"action": "CLICK", "coords": "there"}})},
            "tasks.steps.coordinates_malformed",
        ),
        (
            {"Output": json.dumps({"Predicted": {"action": "CLICK", "coords": [10**400, 1]}})},
            "tasks.steps.coordinates_malformed",
        ),
        (
            {"Output": json.dumps({"Predicted": {"action": "CLICK", "coords": [0.4, 0.5]}})},
            "tasks.steps.coordinates_are_fractions",
        ),
        (
            {"Output": json.dumps({"Predicted": {"action": "CLICK", "coords": [90, 90, 20, 30]}})},
            "tasks.steps.box_corners_reversed",
        ),
        ({"Output": json.dumps({"Reason": "\ud800", "Predicted": {"action": "CLICK"}})}, "data.text_not_unicode"),
        ({"Grounding": "no grounding"}, "tasks.steps.grounding_not_json"),
    ],
)
def test_unusable_rows_are_counted_by_code(change: dict[str, str], code: str, tmp_path: Path) -> None:
    assert dropped(tmp_path, [*task_rows(1), {**row(2, 1), **change}]) == {code: 1}
    assert len(load_data(steps_recipe(tmp_path, max_dropped=1)).train) == 4


def test_parts_missing_in_output_come_from_grounding_and_differences_are_reported(tmp_path: Path) -> None:
    bare = {**row(1, 1), "Output": json.dumps({"Short Term": {}, "Long Term": {}})}
    other = {**row(2, 1), "Output": json.dumps({"Predicted": {"action": "ZOOM", "target": "x", "coords": None}})}
    far = row(3, 1, (("CLICK", "Load volume", [100, 50]),))
    far["Output"] = far["Output"].replace("[100, 50]", "[300, 50]")
    first, second, third = samples(tmp_path, [bare, other, far])
    assert (first.reference["action"], first.reference["place"]) == ("CLICK", [100, 50])
    assert "Reason" not in STEPS.target(first)
    # An explicit null means no place.
    assert (second.reference["action"], second.reference["place"]) == ("ZOOM", None)
    assert third.reference["place"] == [300, 50]
    found = noted(tmp_path, [bare, other, far])
    assert found["tasks.steps.answer_part_missing"].startswith("2 rows: ")
    assert found["tasks.steps.actions_differ"].startswith("1 row: ")
    assert found["tasks.steps.point_outside_box"].startswith("1 row: ")


@pytest.mark.parametrize(
    ("coords", "place"),
    [
        ([100, 250, 100, 50], [100, 250, 100, 50]),
        ([100, 50, 100, 250], [100, 50, 100, 250]),
        ([300, 90, 20, 80], [300, 90, 20, 80]),
        ([100, 50, 100, 50], [100, 50]),
    ],
)
def test_a_scroll_keeps_its_direction(tmp_path: Path, coords: list[int], place: list[float]) -> None:
    predicted = {"Predicted": {"action": "SCROLL", "target": None, "coords": coords}}
    one = {**row(1, 1), "Output": json.dumps(predicted), "Grounding": ""}
    (sample,) = samples(tmp_path, [one], {"answer": ["predicted"]})
    assert (sample.reference["place"], sample.reference["gesture"]) == (place, len(place) == 4)
    answer = STEPS.parse(STEPS.target(sample), sample)
    assert answer.values["place"] == pytest.approx(place, abs=2)
    assert STEPS.scores(sample, answer)["distance"] == pytest.approx(1, abs=0.01)


def test_a_scroll_up_is_not_a_scroll_down(tmp_path: Path) -> None:
    up, down = [100, 250, 100, 50], [100, 50, 100, 250]
    rows = [
        {
            **row(number, 1),
            "Output": json.dumps({"Predicted": {"action": "SCROLL", "target": None, "coords": coords}}),
            "Grounding": json.dumps({"ground_truth": {"bbox": [90, 40, 110, 260]}}),
        }
        for number, coords in ((1, up), (2, down))
    ]
    first, second = samples(tmp_path, rows, {"answer": ["predicted"]})
    assert STEPS.target(first) != STEPS.target(second)
    up_again, down_again = (STEPS.parse(STEPS.target(one), one) for one in (first, second))
    for sample, right, wrong in ((first, up_again, down_again), (second, down_again, up_again)):
        assert (STEPS.scores(sample, right)["grounding"], STEPS.scores(sample, wrong)["grounding"]) == (1, 0)
        assert STEPS.scores(sample, right)["distance"] != STEPS.scores(sample, wrong)["distance"]


def test_coordinates_outside_the_screenshot_are_counted(step: Sample) -> None:
    inside, outside = (GOOD, GOOD.replace("[500,500]", "[500,1001]"))
    assert STEPS.scores(step, STEPS.parse(inside, step))["inside"] == 1
    assert STEPS.scores(step, STEPS.parse(outside, step))["inside"] == 0
    assert STEPS.scores(step, STEPS.parse(GOOD.replace("[500,500]", "null"), step))["inside"] is None


def test_boxes_can_be_a_corner_and_a_size(tmp_path: Path) -> None:
    one = {
        **row(1, 1),
        "Output": json.dumps({"Predicted": {"action": "CLICK"}}),
        "Grounding": json.dumps({"ground_truth": {"bbox": [200, 100, 40, 60]}}),
    }
    write_csv(tmp_path, [one, row(2, 1)])
    assert {one.code for one in load_data(steps_recipe(tmp_path, max_dropped=1)).dropped} == {
        "tasks.steps.box_corners_reversed"
    }
    (first, *_) = samples(tmp_path, [one], {"answer": ["predicted"]}, boxes="xywh")
    assert (first.reference["box"], first.reference["place"]) == ([200, 100, 240, 160], [220, 130])
    assert [one.code for one in STEPS.check(steps_recipe(tmp_path, boxes="xywh unit"))] == ["recipe.steps_box_unit"]


def test_coordinates_may_be_fractions_or_thousandths(tmp_path: Path) -> None:
    one = {
        **row(1, 1),
        "Output": json.dumps({"Predicted": {"action": "CLICK", "coords": [0.25, 0.5]}}),
        "Grounding": "",
    }
    assert samples(tmp_path, [one], {"places": "unit"})[0].reference["place"] == [100, 150]
    one["Output"] = one["Output"].replace("0.25, 0.5", "250, 500")
    assert samples(tmp_path, [one], {"places": "thousand"})[0].reference["place"] == [100, 150]
    one["Output"] = one["Output"].replace("250, 500", "0.25, 0.5")
    write_csv(tmp_path, [one, row(2, 1)])
    dropped = load_data(steps_recipe(tmp_path, {"places": "thousand"}, max_dropped=1)).dropped
    assert "tasks.steps.coordinates_are_fractions" in {problem.code for problem in dropped}


def test_coordinates_that_end_at_1000_on_a_large_screen_are_reported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (1920, 1080)).save(tmp_path / "images" / "large.png")

    def found(largest: int) -> set[str]:
        rows = []
        for number in range(1, 41):
            coords = [number * 9 % 200 + largest - 200, number * 31 % 200 + largest - 200]
            output = json.dumps({"Predicted": {"action": "CLICK", "target": "x", "coords": coords}})
            rows.append({**row(number, 1), "Image_id": "large", "Output": output, "Grounding": ""})
        write_csv(tmp_path, rows)
        return {one.code for one in load_data(steps_recipe(tmp_path, {"answer": ["predicted"]})).warnings}

    assert "tasks.steps.places_may_be_relative" in found(1000)
    assert "tasks.steps.places_may_be_relative" not in found(1060)


def test_screenshots_are_found_by_path_or_by_id(tmp_path: Path) -> None:
    write_csv(tmp_path, task_rows(1))
    rows = task_rows(1)
    rows[0]["Image_id"], rows[1]["Image_id"] = "1_1.png", "./1_2.PNG"
    assert [one.images[0].path.name for one in samples(tmp_path, rows)] == ["1_1.png", "1_2.png", "1_3.png", "1_4.png"]
    write_csv(tmp_path / "b", task_rows(1))
    screens = tmp_path / "b" / "images"
    (screens / "1_2.jpg").write_bytes((screens / "1_2.png").read_bytes())
    assert dropped(tmp_path / "b", task_rows(1)) == {"tasks.steps.screenshot_ambiguous": 1}


def test_a_row_whose_size_is_not_that_of_its_screenshot_stops_the_run(tmp_path: Path) -> None:
    size = {"width": SIZE[0], "height": SIZE[1]}
    assert len(samples(tmp_path, [{**one, **size} for one in task_rows(1)])) == 4
    with raises(DataError, "data.image_size_differs"):
        samples(tmp_path, [{**one, "width": 2 * SIZE[0], "height": 2 * SIZE[1]} for one in task_rows(1)])


def test_a_missing_screenshot_is_searched_again(tmp_path: Path) -> None:
    write_csv(tmp_path, task_rows(1))
    screen = tmp_path / "images" / "1_3.png"
    kept = screen.read_bytes()
    screen.unlink()
    loaded = load_data(steps_recipe(tmp_path, max_dropped=1))
    assert [(one.code, one.examples) for one in loaded.dropped] == [("tasks.steps.screenshot_missing", ("row 2",))]
    assert loaded.dropped[0].notice("left out") in loaded.warnings
    screen.write_bytes(kept)
    assert len(load_data(steps_recipe(tmp_path)).train) == 4


def test_the_order_is_stored_beside_the_index_and_pickled_with_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path, [one for one in [*task_rows(1), *task_rows(2)] if one["Image_id"] != "2_2"])
    recipe = steps_recipe(tmp_path, max_dropped=1)
    first = load_data(recipe)
    monkeypatch.setattr("toolkit.data.row_scan._scan_index", lambda *_: pytest.fail("read again"))
    again = load_data(recipe)
    assert (again.fingerprint, again.warning_texts) == (first.fingerprint, first.warning_texts)
    assert list(pickle.loads(pickle.dumps(again.train[2:]))) == list(first.train)[2:]
    changed = steps_recipe(tmp_path, {"drop_memory": 0.5}, max_dropped=1)
    monkeypatch.undo()
    assert load_data(changed).fingerprint != first.fingerprint


# Splits and ranges


def test_no_task_is_in_two_splits(tmp_path: Path) -> None:
    write_csv(tmp_path, [one for task in range(1, 21) for one in task_rows(task)])
    data = load_data(steps_recipe(tmp_path, split={"test": 0.2, "validation": 0.1}))
    groups = [{one.group for one in part} for part in (data.train, data.validation, data.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert [len(data.train), len(data.validation), len(data.test)] == [56, 8, 16]
    assert all(len(part) % 4 == 0 for part in (data.train, data.validation, data.test))
    assert [(one.code, one.place) for one in data.warnings] == [
        ("data.split_by_group", "test"),
        ("data.split_by_group", "validation"),
    ]


def test_a_range_of_tasks_is_inclusive_and_applies_to_training_rows_alone(tmp_path: Path) -> None:
    write_csv(tmp_path, [one for task in range(1, 13) for one in task_rows(f"task_{task:02}")])
    write_csv(tmp_path, [one for task in range(30, 32) for one in task_rows(f"task_{task}")], "test_results.csv")
    range_ = {"task_start": 3, "task_end": 10}
    data = load_data(steps_recipe(tmp_path, range_, test=str(tmp_path / "test_results.csv")))
    assert sorted({one.group for one in data.train}) == [f"task_{task:02}" for task in range(3, 11)]
    assert len(data.test) == 8
    assert "4 tasks (16 rows) are outside data.steps.task_start to task_end" in "\n".join(data.warning_texts)
    assert data.dropped == ()
    with raises(DataError, "tasks.steps.no_task_in_range") as caught:
        load_data(steps_recipe(tmp_path, {"task_start": 100}))
    assert caught.problem.value == "tasks 1 to 12"


def test_a_range_needs_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path, task_rows("load"))
    with raises(DataError, "tasks.steps.task_without_number") as caught:
        load_data(steps_recipe(tmp_path, {"task_end": 3}))
    assert caught.problem.value == "1 of 1 tasks have none"


def test_tasks_about_one_patient_are_one_group_without_a_setting(tmp_path: Path) -> None:
    rows = [{**one, "Patient ID": f"P{task // 2}"} for task in range(4) for one in task_rows(task)]
    assert {one.group for one in samples(tmp_path, rows)} == {"P0", "P1"}
    assert {one.group for one in samples(tmp_path / "off", rows, group="none")} == {"0", "1", "2", "3"}
    rows[0]["Patient ID"] = "P9"
    with raises(DataError, "tasks.steps.group_splits_task"):
        samples(tmp_path / "cut", rows)


def test_a_group_column_must_not_split_a_task(tmp_path: Path) -> None:
    rows = [{**one, "Site": f"site {task % 2}"} for task in range(1, 5) for one in task_rows(task)]
    assert {one.group for one in samples(tmp_path, rows, group="Site")} == {"site 0", "site 1"}
    rows[1]["Site"] = "elsewhere"
    with raises(DataError, "tasks.steps.group_splits_task") as caught:
        samples(tmp_path / "cut", rows, group="Site")
    assert caught.problem.value == "several in 1 of 4 tasks"


def test_a_column_of_the_reference_cannot_be_put_into_the_prompt(tmp_path: Path) -> None:
    write_csv(tmp_path, task_rows(1))
    recipe = steps_recipe(tmp_path)
    recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"context": ("Grounding",)})})
    with raises(DataError, "tasks.steps.context_shows_reference") as caught:
        load_data(recipe)
    assert caught.problem.value == ["Grounding"]


# Prompts


def prompt(sample: Sample) -> str:
    return STEPS.question(sample) + "\n" + STEPS.instruction(sample)


@pytest.mark.parametrize(
    ("sections", "there", "gone"),
    [
        (["goal", "image"], ["Goal: ", "image"], ["memory:"]),
        (["short_term", "image"], ["Short-term memory: ", "image"], ["Goal", "Long-term"]),
        (["goal", "short_term", "long_term"], ["Goal: ", "Short-term", "Long-term"], ["image"]),
    ],
)
def test_each_section_can_be_switched_off(
    sections: list[str], there: list[str], gone: list[str], tmp_path: Path
) -> None:
    sample = samples(tmp_path, task_rows(1), {"sections": sections})[1]
    text = STEPS.question(sample)
    assert all(part in text for part in there)
    assert not any(part in text for part in gone)
    assert len(sample.images) == ("image" in sections)


SENTINELS = {
    "Output": {
        "Short Term": {"last_action": "SENTINEL1", "last_observation": "SENTINEL2"},
        "Long Term": {"completed_subtasks": ["SENTINEL3"], "SENTINEL4": 1},
        "Reason": "SENTINEL5",
        "Predicted": {"predicted_action": {"action": "CLICK", "target": "SENTINEL6", "coords": [77, 33]}},
    },
    "Grounding": {
        "ground_truth": {
            "action": "CLICK",
            "target": "SENTINEL7",
            "original_step_data": {"step": 2, "action": "SENTINEL8", "note": "SENTINEL9", "bbox": [70, 30, 80, 40]},
        }
    },
}


@given(st.sets(st.sampled_from(["goal", "image", "short_term", "long_term"]), min_size=1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_part_of_the_reference_is_in_the_prompt(sections: set[str], last: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = task_rows(1)
        rows[1] |= {name: json.dumps(value) for name, value in SENTINELS.items()}
        rows[1]["Application"] = "SENTINEL10"
        rows = [{"Application": "viewer", **one} for one in (rows[:2] if last else rows)]
        sample = samples(Path(folder), rows, {"sections": sorted(sections)})[1]
    text = prompt(sample)
    assert sample.reference["target"] == "SENTINEL6"
    assert "SENTINEL" in STEPS.target(sample)
    assert "SENTINEL" not in text
    # The coordinates, in pixels and in the model's convention (77 of 400 and 33 of 300 are 19 and 11 of 100).
    assert not any(number in text for number in ("77", "33", "19", "11"))


@pytest.mark.parametrize("own_columns", [False, True])
def test_no_part_of_the_reference_is_in_the_model_input(own_columns: bool, tmp_path: Path) -> None:
    rows = [{**one, "Site": "SITE"} for one in task_rows(1)]
    last = rows[-1] | {name: json.dumps(value) for name, value in SENTINELS.items()}
    last["Grounding"] = last["Grounding"].replace('"step": 2', '"step": 4')
    rows = [*rows[:-1], last]
    if own_columns:
        rows = [{**one, **own_columns_of(one)} for one in rows]
    write_csv(tmp_path, rows)
    recipe = steps_recipe(tmp_path)
    recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"context": ("Site",)})})
    sample = load_data(recipe).train[3]
    prompts = Prompts.of(recipe, ImageStore.from_recipe(recipe.images, recipe.model))
    given = render_prompt(HfBackend().load_without_model(recipe).processor, prompts.messages(sample))
    assert ("SITE" in given, "Load scan 1" in given, "Note" in given) == (True, True, True)  # context, goal, memory
    assert "SENTINEL" in prompts.task.target(sample)
    assert "SENTINEL" not in given + repr(prompts.row(sample))


def own_columns_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the same step in a dataset with a column for each part."""
    output = json.loads(row["Output"])
    action = output["Predicted"]["predicted_action"]
    memories = {name: json.dumps(output[name]) for name in ("Short Term", "Long Term")}
    place = {"coords": json.dumps(action["coords"]), "bbox": "", "Step": row["Image_id"][-1]}
    named = {"action": action["action"], "target": action["target"] or "", "Reason": output["Reason"]}
    return {**memories, **place, **named, "Output": "", "Grounding": ""}


@pytest.mark.parametrize("name", ["place", "notes", "memory"])
def test_a_column_for_the_prompt_must_not_have_the_name_of_a_computed_field(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path, [{**one, name: "left lung"} for one in task_rows(1)])
    recipe = steps_recipe(tmp_path)
    recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"context": (name,)})})
    with raises(DataError, "tasks.steps.column_name_reserved") as caught:
        load_data(recipe)
    assert caught.problem.value == [name]


def test_the_instruction_is_the_same_for_every_step(tmp_path: Path) -> None:
    assert len({STEPS.instruction(one) for one in samples(tmp_path, task_rows(1))}) == 1


def test_parts_of_the_answer_can_be_left_out(tmp_path: Path) -> None:
    sample = samples(tmp_path, task_rows(1), {"answer": ["predicted", "reason"]})[0]
    assert STEPS.target(sample).startswith('{"Reason":"step 1 comes now","Predicted":')
    assert "Short Term" not in STEPS.instruction(sample)
    assert STEPS.scores(sample, STEPS.parse(STEPS.target(sample), sample))["json"] == 1


@pytest.mark.slow
def test_only_training_memories_are_dropped_and_corrupted_and_the_seed_decides(tmp_path: Path) -> None:
    write_csv(tmp_path, [one for task in range(1, 61) for one in task_rows(task)])
    held_out = str(write_csv(tmp_path, [one for task in range(61, 81) for one in task_rows(task)], "test_results.csv"))
    fractions = {"drop_memory": 0.3, "corrupt_memory": 0.3}
    whole = load_data(steps_recipe(tmp_path, test=held_out))
    plain = whole.train
    data = load_data(steps_recipe(tmp_path, fractions, test=held_out))
    later = [(a, b) for a, b in zip(plain, data.train, strict=True) if a.fields["place"] > 1]
    none = sum(b.fields["memory"] == EMPTY for _, b in later)
    holes = sum(b.fields["memory"] not in (a.fields["memory"], EMPTY) for a, b in later)
    # 180 rows: 54 each expected, standard deviation 6.1.
    assert 30 < none < 80
    assert 30 < holes < 80
    assert [b.fields["memory"] for b in data.train] == [b.fields["memory"] for b in data.train]
    assert all(a.reference == b.reference for a, b in later)
    assert [one.fields["memory"] for one in data.test] == [one.fields["memory"] for one in whole.test]


# Answers

GOOD = (
    '{"Short Term":{"last_action":"x"},"Long Term":{},"Reason":"r",'
    '"Predicted":{"predicted_action":{"action":"CLICK","target":"Save","coords":[500,500]}}}'
)


@pytest.mark.parametrize(
    ("completion", "faults"),
    [
        (GOOD, []),
        (f"```json\n{GOOD}\n```", ["a code fence"]),
        (f"The next step is:\n{GOOD}\nDone.", ["text around the JSON"]),
        (f"{GOOD}\n{GOOD}", ["several objects"]),
        (GOOD.replace("[500,500]}}}", "[500,500],}}}"), [REPAIRED]),
        (GOOD.replace('"', "'"), [REPAIRED]),
        (GOOD[:-3], [REPAIRED]),
        (f'{{"thought":1}} {GOOD[:-1]}', [REPAIRED]),
        (GOOD.replace("Short Term", "short_term").replace("Long Term", "LONG TERM"), []),
        (GOOD.replace("coords", "Coordinates").replace("[500,500]", '{"x":500,"y":500}'), []),
        (GOOD.replace("[500,500]", '"(500, 500)"'), []),
        (GOOD.replace('{"predicted_action":{', "{").replace("}}}", "}}"), []),
        (GOOD.replace('"Predicted":{"predicted_action"', '"predicted_action"').replace("}}}", "}}"), []),
        (GOOD.replace('"Predicted":{"predicted_action":{', "").replace("}}}", "}"), []),
        (GOOD.replace("CLICK", "click"), []),
        (GOOD.replace('"Reason":"r",', ""), ["no Reason"]),
        (GOOD.replace('"Reason":"r"', '"Reason":["r"]'), ["Reason has a wrong type", "no Reason"]),
        (GOOD.replace("{},", "[],"), ["Long Term has a wrong type", "no Long Term"]),
    ],
)
def test_an_answer_is_parsed_in_many_spellings(completion: str, faults: list[str], step: Sample) -> None:
    answer = STEPS.parse(completion, step)
    assert answer.problem is None
    assert (answer.values["action"], answer.values["target"], answer.values["place"]) == ("CLICK", "Save", [200, 150])
    assert answer.values["faults"] == faults
    assert answer.values["repaired"] == (REPAIRED in faults)
    assert STEPS.scores(step, answer)["json"] == float(not faults)


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("", NO_JSON),
        ("CLICK on Save", NO_JSON),
        ("[1, 2]", NO_JSON),
        ("{}", NO_ACTION),
        ('{"Short Term": {"last_action": "CLICK"}}', NO_ACTION),
        ('{"Predicted": {"predicted_action": {"action": null}}}', NO_ACTION),
        (GOOD.replace("CLICK", "DANCE"), UNKNOWN_ACTION),
        (GOOD + GOOD.replace("CLICK", "ZOOM"), SEVERAL),
        ("{" * 100, NO_JSON),
        ("{" * 5000, TOO_LONG),
        ("x" * MAX_CHARACTERS + GOOD, TOO_LONG),
    ],
)
def test_an_unparsed_answer_has_a_problem_and_scores_0(completion: str, problem: str, step: Sample) -> None:
    answer = STEPS.parse(completion, step)
    assert answer.problem == problem
    assert answer.values == {}
    scores = STEPS.scores(step, answer)
    assert {value for value in scores.values() if value is not None} == {0.0}
    assert STEPS.labels(step, answer) == ("SCROLL", None)


def test_half_surrogate_pairs_and_infinite_numbers_can_be_stored(step: Sample) -> None:
    text = GOOD.replace('"x"', '"\\ud83d"').replace('"Long Term":{}', '"Long Term":{"n":1e999,"\\ud83d":["\\ud83d"]}')
    answer = STEPS.parse(text.replace("Save", "\\ud83d"), step)
    written = json.dumps(answer.values, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(written)["long_term"] == {"n": None, "\ufffd": ["\ufffd"]}
    assert json.loads(written)["target"] == "\ufffd"


def test_a_number_beyond_the_range_of_floats_is_no_place_and_no_memory(step: Sample) -> None:
    endless = "9" * 400  # exceeds the range of float: a model that repeats itself
    action = f'{{"action":"CLICK","target":{endless},"coords":{{"x":{endless},"y":1}}}}'
    answer = STEPS.parse(f'{{"Short Term":{{"n":{endless},"m":[{endless}]}},"Predicted":{action}}}', step)
    assert (answer.values["action"], answer.values["place"]) == ("CLICK", None)
    assert answer.values["memory"]["short_term"] == dict(step.fields["memory"].short_term)
    assert STEPS.scores(step, answer)["grounding"] == 0


def test_unparsed_coordinates_are_a_fault_and_the_action_is_kept(step: Sample) -> None:
    answer = STEPS.parse(GOOD.replace("[500,500]", '"in the middle"'), step)
    assert (answer.values["action"], answer.values["place"]) == ("CLICK", None)
    assert answer.values["faults"] == ["the coordinates cannot be read"]


@given(
    st.text(max_size=80) | st.text(alphabet='{}[]":,ab1 \n', max_size=60).map(lambda text: '{"action":"CLICK",' + text)
)
@settings(max_examples=300, deadline=None)
def test_no_completion_makes_the_parser_fail(step: Sample, completion: str) -> None:
    answer = STEPS.parse(completion, step)
    assert (answer.problem is None) == bool(answer.values)
    json.dumps(answer.values, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([1, 2], (1, 2)),
        ([1, 2, 3, 4], (1, 2, 3, 4)),
        ([[1, 2], [3, 4]], (1, 2, 3, 4)),
        ({"x": 1, "y": 2}, (1, 2)),
        ({"X1": 1, "Y1": 2, "X2": 3, "Y2": 4}, (1, 2, 3, 4)),
        ({"x": 1, "y": 2, "width": 2, "height": 2}, (1, 2, 3, 4)),
        ("1, 2", (1, 2)),
        ("[1.5, 2]", (1.5, 2)),
        ("x=1, y=2", (1, 2)),
        (None, None),
        ("null", None),
        ([], None),
        ([None, None], None),
    ],
)
def test_coordinates_are_parsed_in_many_formats(value: Any, place: tuple[float, ...] | None) -> None:
    assert parse_point_or_box(value) == place


@pytest.mark.parametrize(
    "value", [[1], [1, 2, 3], "near 5", {"x": 1}, [1, True], True, 5, [1, float("inf")], "1e99, 2"]
)
def test_other_values_are_no_coordinates(value: Any) -> None:
    with pytest.raises(ValueError):
        parse_point_or_box(value)


def test_a_gesture_is_two_points_and_not_a_box_or_a_distance(tmp_path: Path) -> None:
    area = {"x": 1, "y": 2, "width": 2, "height": 2}
    assert parse_point_or_box({"x1": 1, "y1": 9, "x2": 1, "y2": 2}, gesture=True) == (1, 9, 1, 2)
    for value in (area, {"left": 1, "top": 2, "right": 3, "bottom": 4}):
        with pytest.raises(ValueError):
            parse_point_or_box(value, gesture=True)
    with pytest.raises(ValueError):
        parse_point_or_box({"x": 1, "y": 2, "dx": 0, "dy": -300})


# Memories

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("x" * (MAX_TEXT + 5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
MEMORIES = st.none() | st.dictionaries(st.sampled_from("abcdef") | st.text(max_size=4), VALUES, max_size=6)
ANSWERS = st.builds(
    lambda short, long, problem: Answer(
        "…", {"short_term": short, "long_term": long} if problem is None else {}, problem
    ),
    MEMORIES,
    MEMORIES,
    st.sampled_from([None, None, None, "no JSON"]),
)


@pytest.mark.slow
@given(st.lists(ANSWERS, max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_memory_keeps_omitted_keys_and_stays_within_its_limits(answers: list[Answer]) -> None:
    memory = EMPTY
    for answer in answers:
        after = advance(memory, answer)
        if answer.problem is not None:
            assert after == AgentMemory(memory.short_term, memory.long_term, memory.failures + 1, memory.cut)
        for part in ("short_term", "long_term"):
            old, new, said = getattr(memory, part), getattr(after, part), answer.values.get(part) or {}
            assert set(old) <= set(new)
            assert len(new) <= MAX_KEYS
            assert all(new[key] == value for key, value in old.items() if said.get(key) is None)
            assert within(new)
        once_more = advance(after, answer)
        assert (once_more.short_term, once_more.long_term) == (after.short_term, after.long_term)
        memory = after
    json.dumps([memory.short_term, memory.long_term], allow_nan=False)
    compact(memory.long_term).encode()


def within(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(within, value.values()))
    if isinstance(value, list):
        return len(value) <= MAX_ITEMS and all(map(within, value))
    return value is not None and len(str(value)) <= MAX_TEXT


@given(st.lists(ANSWERS, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_replay_of_stored_answers_gives_the_same_memories(answers: list[Answer]) -> None:
    memories = []
    memory = EMPTY
    for answer in answers:
        memory = advance(memory, answer)
        memories.append(memory)
    lines = [{"completion": a.text, "answer": a.values, "problem": a.problem} for a in answers]
    written = [json.loads(json.dumps(line)) for line in lines]
    assert [(m.short_term, m.long_term, m.failures, m.cut) for m in replay(written)] == [
        (m.short_term, m.long_term, m.failures, m.cut) for m in memories
    ]


def test_a_scalar_does_not_replace_a_list_and_cut_values_are_counted() -> None:
    memory = advance(EMPTY, Answer("", {"long_term": {"done": ["a"], "note": "none"}}))
    after = advance(memory, Answer("", {"long_term": {"done": "all", "note": ["b"]}}))
    assert (after.long_term, after.cut) == ({"done": ["a"], "note": ["b"]}, 1)
    many = advance(EMPTY, Answer("", {"long_term": {"done": [str(n) for n in range(MAX_ITEMS + 3)]}}))
    assert (many.long_term["done"][0], many.long_term["done"][-1], many.cut) == ("3", str(MAX_ITEMS + 2), 3)


def test_the_answer_has_the_memory_for_the_next_step(step: Sample) -> None:
    answer = STEPS.parse(GOOD, step)
    after = advance(step.fields["memory"], answer)
    assert answer.values["memory"] == {"short_term": after.short_term, "long_term": after.long_term}
    assert after.long_term["completed_subtasks"] == ["Load volume"]
    assert after.short_term["last_action"] == "x"


def test_a_thinned_memory_has_fewer_entries_and_no_new_ones() -> None:
    memory = AgentMemory({"a": "1", "b": "2"}, {"done": ["x", "y", "z"]})
    for seed in range(50):
        thinned = thin(memory, Random(seed))
        assert thinned != memory
        assert thinned.short_term.items() <= memory.short_term.items()
        assert set(thinned.long_term.get("done", [])) <= {"x", "y", "z"}
    assert thin(EMPTY, Random(0)) == EMPTY


# Baselines


def test_the_baseline_is_the_most_frequent_step_at_its_median_place(tmp_path: Path) -> None:
    clicks = [(("CLICK", "Save", [x, 60]),) for x in (40, 80, 200)]
    rows = [row(task, 1, steps) for task, steps in enumerate(clicks)] + [row(9, 1, (("COMPLETE", None, None),))] * 1
    write_csv(tmp_path, rows)
    train = load_data(steps_recipe(tmp_path, model=QWEN)).train
    completion = STEPS.baseline(train)(train[3])
    answer = STEPS.parse(completion, train[3])
    # The median of 40, 80 and 200 is 80: 200 of 1000; 60 of 300 is 200 of 1000.
    assert '"coords":[200,200]' in completion
    assert (answer.values["action"], answer.values["place"], answer.values["faults"]) == ("CLICK", [80, 60], [])
    assert STEPS.scores(train[3], answer)["step"] == 0
    assert STEPS.scores(train[1], STEPS.parse(STEPS.baseline(train)(train[1]), train[1]))["step"] == 1


def test_each_score_has_its_own_majority_baseline(tmp_path: Path) -> None:
    # Every task has the same end and clicks on another target.
    ends = [row(task, 1, (("COMPLETE", "task", None),)) for task in (1, 2)]
    clicks = [row(task, 1, (("CLICK", name, [40, 60]),)) for task, name in enumerate(("Save", "Open", "Send"), 3)]
    train = samples(tmp_path, [*clicks, *ends])

    def means(baseline: Any) -> list[float]:
        complete = baseline(train)
        found = [STEPS.scores(one, STEPS.parse(complete(one), one)) for one in train]
        return [sum(scores[name] or 0 for scores in found) / 5 for name in ("step", "action", "target")]

    assert means(STEPS.baseline) == [0.4, 0.4, 0.4]
    assert means(STEPS.baselines["action"]) == [0.2, 0.6, 0.2]
    assert means(STEPS.baselines["target"]) == [0.4, 0.4, 0.4]
    more = [row(task, 1, (("CLICK", None, None),)) for task in (8, 9)]
    both = samples(tmp_path / "both", [*clicks, *ends, *more])
    # "Save" is right for the clicks without a target too: 3 rows of 7, more than the ends' 2.
    assert '"target":"Save"' in STEPS.baseline(both)(both[0])
    loud = samples(
        tmp_path / "loud", [*ends, *(row(t, 1, (("CLICK", n, None),)) for t, n in ((3, "OK"), (4, "ok."), (5, "Ok")))]
    )
    assert '"target":"OK"' in STEPS.baseline(loud)(loud[0])


def test_the_repeat_last_baseline_repeats_the_previous_step(step: Sample, tmp_path: Path) -> None:
    answer = STEPS.parse(repeat_last(step), step)
    assert (answer.values["action"], answer.values["target"]) == ("CLICK", "Load volume")
    # 100 and 50 of 400 and 300 pixels are 250 and 166.7 of 1000, of which 167 are 50.1 pixels.
    assert answer.values["place"] == pytest.approx([100, 50.1])
    first = samples(tmp_path, task_rows(1))[0]
    assert STEPS.parse(repeat_last(first), first).problem == NO_JSON


# Recipes


@pytest.mark.parametrize(
    ("steps", "code", "key", "value"),
    [
        ("sections = []", "list_empty_or_repeated", "sections", []),
        ('answer = ["reason"]', "steps_answer_incomplete", "answer", ["reason"]),
        ('actions = ["A", "A"]', "list_empty_or_repeated", "actions", ["A", "A"]),
        ("drop_memory = 0.7\ncorrupt_memory = 0.7", "memory_fractions_too_large", "corrupt_memory", 1.4),
        ('sections = ["goal"]\ndrop_memory = 0.1', "no_memory_to_drop", "sections", ["goal"]),
        ("task_start = 5\ntask_end = 3", "task_range_reversed", "task_end", 3),
        ('section = ["goal"]', "key_unknown", "section", NOTHING),
    ],
)
def test_a_wrong_recipe_is_rejected(steps: str, code: str, key: str, value: object, tmp_path: Path) -> None:
    text = f'[run]\nname = "r"\n[data]\ntask = "steps"\ntrain = "x.csv"\n[data.steps]\n{steps}\n[sft]\n'
    file = tmp_path / "r.toml"
    file.write_text(text)
    with raises(RecipeError, f"recipe.{code}") as caught:
        load_recipe(file)
    assert (caught.problem.place, caught.problem.value) == (f"{file}: data.steps.{key}", value)


def test_settings_of_another_task_are_rejected(tmp_path: Path) -> None:
    text = '[run]\nname = "r"\n[data]\ntask = "mcq"\ntrain = "x.json"\n[data.steps]\ntask_start = 1\n[sft]\n'
    (tmp_path / "r.toml").write_text(text)
    with raises(RecipeError, "recipe.key_of_other_task") as caught:
        load_recipe(tmp_path / "r.toml")
    assert caught.problem.place.endswith(": data.steps")
