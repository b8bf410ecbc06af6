"""The HTML report: what it shows of a run, what it keeps private, and which files it replaces."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from tests.helpers.cli import call
from tests.helpers.problems import warnings_in
from tests.helpers.training import Tables, small_recipe
from toolkit.data.sample import Answer, Sample
from toolkit.data.shapes import Shape
from toolkit.errors import RunError
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.reporting.blocks import Example, Examples, Part, Plots, Reply, Report, Section, Text
from toolkit.reporting.classification import reliability, roc_curve
from toolkit.reporting.embedding import ImageBudget
from toolkit.reporting.evaluated_rows import evaluated_rows
from toolkit.reporting.examples import examples_section
from toolkit.reporting.finished_run import read_run
from toolkit.reporting.markdown import markdown_page
from toolkit.reporting.page import html_page, shape_path
from toolkit.reporting.plots import ForestRow, Series, averaged, forest
from toolkit.reporting.report import (
    ReportOptions,
    _named,
    _results,
    build_report,
    html_report,
    report_runs,
    write_run_report,
)
from toolkit.runfolder import RunFolder, read_lines
from toolkit.runfolder.files import write_lines
from toolkit.scoring.statistics import Estimate
from toolkit.tasks import TASKS

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def evaluated(folder: Path, task: str, kind: str, name: str, **tables: Any) -> RunFolder:
    """Return a run that evaluated the untrained tiny model, and whose completions are then set to the references.

    One of them stays as the model wrote it, and one has an attack in it.
    """
    synthetic = {"kind": kind, "train": 18, "test": 12, "size": 64, **tables.pop("synthetic", {})}
    base: dict[str, Any] = {"data": {"task": task, "synthetic": synthetic}, "model": {"max_tokens": 512}, **tables}
    recipe = small_recipe(folder, base, name=name)
    recipe = recipe.model_copy(update={"sft": None, "grpo": None, "export": None})
    run = run_recipe(recipe, STAGES).run
    return with_references(run, task)


def with_references(run: RunFolder, task: str) -> RunFolder:
    found = read_run(run)
    rows = evaluated_rows(found)
    assert rows is not None
    file = run.path / next(iter(found.evaluations.values())).predictions
    lines = read_lines(file)
    for number, line in enumerate(lines):
        if number > 1:
            line["completion"], line["problem"] = TASKS[task].target(rows.samples[line["id"]]), None
    lines[1]["completion"] = HOSTILE
    write_lines(file, lines, private=True)
    return run


@pytest.fixture(scope="module")
def mcq(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run with two steps of SFT and GRPO and three evaluations."""
    tables: Tables = {"sft": {"max_steps": 2}, "grpo": {"max_steps": 2}, "rewards": {"letter": 1.0}}
    return run_recipe(small_recipe(tmp_path_factory.mktemp("mcq"), tables), STAGES).run


@pytest.fixture(scope="module")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return evaluated(tmp_path_factory.mktemp("lesion"), "lesion", "lesion", "lesion", synthetic={"size": 96})


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return evaluated(tmp_path_factory.mktemp("classify"), "classify", "tissue", "classify")


def examples_of(run: RunFolder, **options: Any) -> tuple[Example, ...]:
    found = read_run(run)
    rows = evaluated_rows(found)
    assert rows is not None
    section = examples_section(found, rows, ImageBudget(1_000_000, **options))
    return next(block.examples for block in section.blocks if isinstance(block, Examples))


def section_of(report: Report, name: str) -> Section:
    return next(section for part in report.parts for section in part.sections if section.id == name)


@pytest.mark.slow
def test_a_run_ends_with_a_private_report_without_network(mcq: RunFolder) -> None:
    text = mcq.report_file.read_text()
    assert len(text.encode()) < 10_000_000
    assert mcq.report_file.stat().st_mode & 0o777 == 0o600
    page = Elements(text)
    links = [value for _, attributes in page.found for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(str(link).startswith(("data:", "#")) for link in links)
    assert not re.findall(r"url\((?!#)|@import", text)


@pytest.mark.slow
def test_the_report_has_the_scores_and_differences_of_the_run(mcq: RunFolder) -> None:
    results, text = read_results(mcq.path), Elements(mcq.report_file.read_text()).text
    for row in results.rows:
        assert row.estimate.value is not None
        assert f"{100 * row.estimate.value:.1f} %" in text
    change = results.evaluations["grpo"].primary.differences["sft"].difference
    ends = [100 * end for end in (change.value, change.low, change.high) if end is not None]
    assert "{:+.1f} ({:+.1f} to {:+.1f})".format(*ends) in text
    section = section_of(build_report([mcq.path]), "training")
    titles = [plot.title for block in section.blocks if isinstance(block, Plots) for plot in block.plots]
    assert {"sft: loss", "grpo: total reward", "grpo: reward letter", "grpo: learning rate"} <= set(titles)


@pytest.mark.slow
def test_examples_have_completions_before_and_after_with_rewards(mcq: RunFolder) -> None:
    (example, *_) = examples_of(mcq)
    assert [reply.label for reply in example.replies] == ["before", "after SFT", "after GRPO"]
    assert all("letter" in reply.rewards for reply in example.replies)
    assert example.images[0].uri.startswith("data:image/")
    assert example.name.startswith("id-")


@pytest.mark.slow
def test_outcomes_and_worst_cases_follow_the_scores(lesion: RunFolder) -> None:
    found = examples_of(lesion)
    scores = {one.name: one.replies[-1].score for one in found}
    for one in found:
        score = scores[one.name]
        assert score is not None
        assert one.outcome == ("unreadable" if one.replies[-1].problem else "right" if score == 1 else "wrong")
    worst = sorted((one for one in found if one.worst), key=lambda one: one.worst)
    assert worst
    assert [scores[one.name] for one in worst] == sorted(scores.values(), key=lambda score: score or 0)[: len(worst)]
    assert all(one.outcome != "right" for one in worst)


@pytest.mark.slow
def test_reference_and_completion_are_drawn_over_the_image(lesion: RunFolder) -> None:
    right = next(one for one in examples_of(lesion) if one.outcome == "right")
    (reference, *_), (predicted, *_) = right.shapes, right.replies[-1].shapes
    assert (reference.kind, predicted.kind, predicted.label) == ("box", "box", reference.label)
    assert predicted.numbers == pytest.approx(reference.numbers, abs=2)
    width, height = right.images[0].size
    assert 0 <= reference.numbers[0] < reference.numbers[2] <= width
    assert 0 <= reference.numbers[1] < reference.numbers[3] <= height
    assert any(shape.kind == "outline" for shape in right.shapes)


@pytest.mark.slow
def test_markup_in_a_completion_is_shown_as_text(lesion: RunFolder) -> None:
    page = Elements(html_report([lesion.path]))
    assert page.count("script") == 1
    assert not [
        tag for tag, attributes in page.found if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert 'alert("x")' in page.text


@pytest.mark.slow
def test_only_the_pages_own_script_is_allowed(lesion: RunFolder) -> None:
    text = html_report([lesion.path])
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in Elements(text).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.slow
def test_without_examples_no_text_and_no_image_of_a_row_is_in_the_report(mcq: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "public.html"
    assert call(["report", str(mcq.path), "--no-examples", "--out", str(file)]) == 0
    text = file.read_text()
    rows = evaluated_rows(read_run(mcq))
    assert rows is not None
    for sample in rows.samples.values():
        assert sample.fields["question"] not in text
        assert sample.id not in text
    assert "data:image" not in text
    assert file.stat().st_mode & 0o077
    assert str(mcq.path.parent) not in text


@pytest.mark.slow
def test_ids_and_paths_are_hashed_and_images_can_be_left_out(mcq: RunFolder) -> None:
    text = html_report([mcq.path], ReportOptions(images=False))
    rows = evaluated_rows(read_run(mcq))
    assert rows is not None
    names = [sample.id for sample in rows.samples.values()] + [
        sample.images[0].path.name for sample in rows.samples.values()
    ]
    assert not [name for name in names if name in text]
    assert "data:image" not in text
    known = json.loads((mcq.path / "identifiers.json").read_text())["names"]
    shown = set(re.findall(r"<h4>(id-[0-9a-f]{8})</h4>", text))
    assert {known[one] for one in shown} <= set(rows.samples)
    assert shown


@pytest.mark.slow
def test_a_report_of_the_user_is_kept(mcq: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    before = mcq.report_file.read_text()
    assert write_run_report(mcq) == mcq.report_file  # its own report is replaced
    mcq.report_file.write_text("mine")
    assert write_run_report(mcq) is None
    assert [problem.code for problem in warnings_in(caplog)] == ["report.not_written"]
    with pytest.raises(RunError) as caught:
        report_runs([mcq.path])
    assert caught.value.code == "output.files_exist"
    assert mcq.report_file.read_text() == "mine"
    assert report_runs([mcq.path], force=True) == mcq.report_file
    assert (mcq.path / "report.html.old-1").read_text() == "mine"
    assert len(mcq.report_file.read_text()) == pytest.approx(len(before), rel=0.1)
    (mcq.path / "report.html.old-1").unlink()


@pytest.mark.slow
def test_two_runs_are_compared_by_question(classify: RunFolder, tmp_path: Path) -> None:
    copied = RunFolder(tmp_path / "second")
    shutil.copytree(classify.path, copied.path)
    file = next((copied.path / "stages").glob("evaluate-*/predictions.jsonl"))
    lines = read_lines(file)
    for line in lines:
        line["completion"] = ""
    write_lines(file, lines, private=True)
    report = build_report([classify.path, copied.path])
    section = section_of(report, "compared")
    plots = [plot for block in section.blocks if isinstance(block, Plots) for plot in block.plots]
    rows = evaluated_rows(read_run(classify))
    assert rows is not None
    right = [row.scores["accuracy"] for row in rows.scored(rows.last).values()]
    expected = -100 * sum(score or 0 for score in right) / len(right)
    ((label, shown, n),) = next(plot.table.rows for plot in plots if plot.title == "paired differences to classify")
    assert (label, n) == ("second", "12")
    assert float(shown.partition(" ")[0]) == pytest.approx(expected, abs=0.05)
    assert [part.title for part in report.parts] == ["Comparison", "classify", "second"]

    write_lines(file, lines[:8], private=True)
    section = section_of(build_report([classify.path, copied.path]), "compared")
    plots = [plot for block in section.blocks if isinstance(block, Plots) for plot in block.plots]
    ((_, _, n),) = next(plot.table.rows for plot in plots if plot.title == "paired differences to classify")
    assert n == "8"
    (note,) = [block.text for block in section.blocks if isinstance(block, Text)]
    assert re.findall(r"\d+", note) == ["8", "12", "8"]


@pytest.mark.slow
def test_data_that_changed_since_the_run_are_not_shown(classify: RunFolder, tmp_path: Path) -> None:
    copied = RunFolder(tmp_path / "changed")
    shutil.copytree(classify.path, copied.path)
    for file in (copied.path / "synthetic").glob("test.*"):
        file.write_text(file.read_text().replace("MUS", "TUM"))
    rows = evaluated_rows(read_run(copied))
    assert rows is not None
    assert not rows.samples
    assert "changed" in rows.reason
    section = section_of(build_report([copied.path]), "examples")
    (block,) = [block for block in section.blocks if isinstance(block, Examples)]
    assert all(one.replies[0].score is None and not one.images for one in block.examples)


@pytest.mark.slow
def test_a_report_that_is_too_large_loses_its_images(classify: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = html_report([classify.path])
    assert "data:image/" in whole
    without = html_report([classify.path], ReportOptions(images=False))
    monkeypatch.setattr("toolkit.reporting.report.MAX_BYTES", len(without.encode()) + 100)
    assert "data:image/" not in html_report([classify.path])


def test_images_beyond_the_budget_are_left_out_with_a_reason() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    budget = ImageBudget(100_000)
    first = budget.encode(image)
    assert first.size == (300, 200)
    assert budget.left == 100_000 - len(first.uri.partition(",")[2])
    budget.left = 10
    assert budget.encode(image).uri == ""
    assert budget.encode(image).reason


def test_formats_and_the_former_subcommand_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError) as caught:
        report_runs([tmp_path], tmp_path / "report.pdf")
    assert caught.value.code == "run.report_format_unknown"
    with pytest.raises(RunError) as caught:
        report_runs([tmp_path], tmp_path / "report.html", "json")
    assert caught.value.code == "run.report_format_unknown"
    assert call(["report", str(tmp_path), "--json", "--format", "html"]) == 2
    assert "--format" in capsys.readouterr().err
    assert call(["report", "compute", str(tmp_path)]) == 2
    assert "toolkit report RUN" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_roc_curves_are_those_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(60) < 0.4
    scores = np.round(random.random(60) + 0.3 * positive, 1).astype(np.float64)  # ties
    false, true = roc_curve(scores, positive)
    expected_false, expected_true, _ = sklearn_roc_curve(positive, scores, drop_intermediate=False)
    assert false == pytest.approx(expected_false)
    assert true == pytest.approx(expected_true)
    assert float(np.trapezoid(true, false)) == pytest.approx(roc_auc_score(positive, scores))


def test_bins_of_the_calibration_plot_give_the_calibration_error() -> None:
    random = np.random.default_rng(0)
    scores = random.random(500)
    right = random.random(500) < scores**2
    found = reliability(scores, right, [str(number) for number in range(500)], 15)
    error = sum(one.n * abs(mean - (one.value or 0)) for mean, one in found) / 500
    edges = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs((right[edges == b] - scores[edges == b]).sum()) for b in range(15)]
    assert sum(one.n for _, one in found) == 500
    assert error == pytest.approx(sum(gaps) / 500)


def estimate(value: float) -> Estimate:
    return Estimate(value, 50, value - 0.05, value + 0.05, "wilson", 50)


def test_names_in_plots_are_escaped_and_never_start_a_formula() -> None:
    drawn = forest("<b>", [ForestRow(f"{HOSTILE[:12]} $\\frac$", estimate(0.5))], "accuracy")
    assert Elements(drawn).count("script") == 0
    assert "<b>" not in drawn
    assert "$\\frac$" in Elements(drawn).text
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)  # every colour is a variable of the page


def test_long_series_are_averaged() -> None:
    found = averaged(Series("loss", range(1000), [float(step) for step in range(1000)]))
    assert len(found.ys) <= 300
    assert np.mean(found.ys) == pytest.approx(499.5)
    assert found.xs == found.ys


@pytest.mark.parametrize(
    ("task", "reference", "values", "expected", "predicted"),
    [
        (
            "detect",
            {"labels": ["cyst"], "boxes": [[1, 2, 3, 4]]},
            {"labels": ["node"], "boxes": [[2, 2, 4, 4]]},
            [Shape("box", (1, 2, 3, 4), "cyst")],
            [Shape("box", (2, 2, 4, 4), "node")],
        ),
        (
            "steps",
            {"action": "CLICK", "place": [5, 6], "gesture": False, "box": [1, 2, 9, 9]},
            {"action": "CLICK", "place": [7.0, 8.0]},
            [Shape("box", (1, 2, 9, 9)), Shape("point", (5, 6), "CLICK")],
            [Shape("point", (7, 8), "CLICK")],
        ),
        (
            "steps",
            {"action": "DRAG", "place": [1, 2, 3, 4], "gesture": True, "box": None},
            {"action": "DRAG", "place": None},
            [Shape("arrow", (1, 2, 3, 4), "DRAG")],
            [],
        ),
        ("vqa", {}, {}, [], []),
    ],
)
def test_tasks_say_what_is_drawn(
    task: str, reference: dict[str, Any], values: dict[str, Any], expected: list[Shape], predicted: list[Shape]
) -> None:
    sample = Sample("a", task, "g", (), {}, reference)
    assert list(TASKS[task].shapes(sample, None)) == expected
    assert list(TASKS[task].shapes(sample, Answer("…", values))) == predicted


@pytest.mark.parametrize("side", ["reference", "predicted"])
def test_points_of_reference_and_completion_have_different_marks(side: str) -> None:
    point = Shape("point", (50, 50))
    other = "predicted" if side == "reference" else "reference"
    assert shape_path(point, side, 1) != shape_path(point, other, 1)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(mode: int) -> None:
    style = (Path(html_page.__code__.co_filename).parent / "templates" / "report.css").read_text()
    colours = {name: pair[mode] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)}
    texts = ("text", "quiet", "accent", "alert", "right")
    for ground in ("page", "panel"):
        for name in texts:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in colours:
            if name.startswith("series-") or name == "strong-line":
                assert contrast(colours[name], colours[ground]) >= 3, (name, ground)
    assert contrast(colours["alert"], colours["alert-panel"]) >= 4.5
    assert contrast(colours["text"], colours["alert-panel"]) >= 4.5


def page_of(*examples: Example) -> str:
    section = Section("examples", "Examples", (Examples(examples),))
    return html_page(Report("run", (), (Part("run-0", "run", (section,)),), has_rows=True))


def example(number: int, outcome: str, *, changed: bool = False, worst: int = 0) -> Example:
    reply = Reply("after SFT", HOSTILE, 1.0, None, False, {HOSTILE: (0.5, HOSTILE)}, {HOSTILE: 0.5})
    return Example(f"id-{number:08x}", "row 1", HOSTILE, HOSTILE, outcome, changed, worst, (), (), (reply,))


def test_every_text_of_an_example_is_escaped() -> None:
    page = Elements(page_of(example(1, "right")))
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert page.text.count('alert("x")') >= 5


@pytest.mark.slow
def test_a_damaged_run_is_named_beside_others_and_rejected_alone(classify: RunFolder, tmp_path: Path) -> None:
    broken = RunFolder(tmp_path / "broken")
    shutil.copytree(classify.path, broken.path)
    next((broken.path / "stages").glob("evaluate-*/done.json")).write_text("{}")
    section = section_of(build_report([classify.path, broken.path]), "damaged")
    (text,) = [block.text for block in section.blocks if isinstance(block, Text)]
    assert text.startswith("broken ")
    with pytest.raises(RunError) as caught:
        build_report([broken.path])
    assert caught.value.code == "run.stage_damaged"


def damaged(run: RunFolder, folder: Path, **fields: Any) -> RunFolder:
    """Return a copy of a run whose last predictions have these fields in their first line."""
    copy = RunFolder(Path(shutil.copytree(run.path, folder / "copy")))
    file = copy.path / list(read_run(copy).evaluations.values())[-1].predictions
    lines = read_lines(file)
    lines[0].update(fields)
    write_lines(file, lines)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"id": ["a"]}, {"completion": None}, {"truncated": "no"}, {"problem": {"a": 1}}])
def test_a_prediction_of_another_type_is_an_error(mcq: RunFolder, tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(RunError) as error:
        evaluated_rows(read_run(damaged(mcq, tmp_path, **fields)))
    assert error.value.code == "run.line_damaged"


@pytest.mark.slow
def test_predictions_outside_of_the_run_are_not_read(mcq: RunFolder, tmp_path: Path) -> None:
    run = damaged(mcq, tmp_path)
    file = run.path / "stages" / "evaluate-grpo" / "done.json"
    for name in ("../../outside.jsonl", "/dev/zero"):
        content = json.loads(file.read_text())
        content["result"]["predictions"] = name
        file.write_text(json.dumps(content))
        with pytest.raises(RunError) as error:
            evaluated_rows(read_run(run))
        assert error.value.code == "run.predictions_outside"


@pytest.mark.slow
def test_missing_predictions_are_a_warning_in_the_examples(mcq: RunFolder, tmp_path: Path) -> None:
    run = damaged(mcq, tmp_path)

    def warnings_of() -> int:
        blocks = section_of(build_report([run.path]), "examples").blocks
        return sum(isinstance(block, Text) and block.tone == "warning" for block in blocks)

    assert warnings_of() == 0
    file = run.path / list(read_run(run).evaluations.values())[-1].predictions
    write_lines(file, read_lines(file)[1:])
    assert warnings_of() == 1


@pytest.mark.parametrize("kind", [html_page, markdown_page])
def test_control_characters_and_tokens_of_texts_are_replaced(kind: Any) -> None:
    token = "hf_" + "a" * 30
    text = f"90 \x1b[2J\u202e% {token}"
    report = Report(text, ((text, text),), (Part("run", text, (Section("one", text, (Text(text),)),)),), has_rows=False)
    page = kind(report)
    assert not {"\x1b", "\u202e"} & set(page)
    assert "202e% [hidden]" in page
    assert token not in page


def test_runs_of_one_name_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("a/x", "b/x", "c/x (2)", "d/x")]
    names = [name for _, name in _named(folders)]
    assert len(set(names)) == 4


@pytest.mark.slow
def test_code_of_a_recipe_runs_only_with_its_option(
    mcq: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = damaged(mcq, tmp_path)
    (run.path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    text = run.recipe_file.read_text()
    for old, new in (('task = "mcq"', 'task = "own.py:TASK"'), ("[rewards]", '[rewards]\ncustom = ["own.py:mine"]')):
        assert old in text
        run.recipe_file.write_text(re.sub(r"(?m)^custom = \[\]\n", "", text).replace(old, new))
        caplog.clear()
        assert call(["report", str(run.path), "--out", str(tmp_path / "a.html"), "--force"]) == 0
        assert "report.code_not_run" in [one.code for one in warnings_in(caplog)]
        assert not (tmp_path / "ran").exists()
        call(["report", str(run.path), "--out", str(tmp_path / "a.html"), "--force", "--custom-code"])
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()


def test_a_plan_of_another_structure_counts_as_no_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path)
    for content in ("[]", '{"gpu": "x"}', '{"memory": [1]}', '{"time": 3}'):
        run.plan_file.write_text(content)
        caplog.clear()
        assert run.plan() == {}
        assert [one.code for one in warnings_in(caplog)] == ["run.plan_damaged"]


@pytest.mark.slow
def test_a_plan_with_values_of_other_types_is_not_compared(mcq: RunFolder, tmp_path: Path) -> None:
    run = damaged(mcq, tmp_path)
    for time_ in ({"here": "L4", "gpus": [1]}, {"here": "L4", "gpus": {"L4": {"sft": {"hours": 3}}}}):
        run.plan_file.write_text(json.dumps({"gpu": {"here": {"name": "L4"}}, "time": time_}))
        (text,) = section_of(build_report([run.path]), "plan").blocks
        assert isinstance(text, Text)
        assert text.tone == "warning"


def test_results_of_another_structure_are_damaged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for dropped in ("[5]", '{"a": {}}', '[{"source": 1}]', "3"):
        run.results_file.write_text(f'{{"data": {{"dropped": {dropped}}}}}')
        assert _results(run) is None
    run.results_file.write_text('{"data": {"dropped": [{"source": "/data/rows.json"}], "sources": 1}}')
    assert _results(run) == {"data": {"dropped": [{"source": "rows.json"}]}}
