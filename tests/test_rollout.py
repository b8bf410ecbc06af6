"""Episodes with a scripted model that answers from the reference, so that all scores are known by hand."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.rolling import TASKS, Script, Scripted, right, rolling_recipe, step_of, wrong
from tests.helpers.stepping import row, task_rows, write_csv
from tests.helpers.training import context_of
from toolkit.cli import tables as show
from toolkit.errors import RecipeError
from toolkit.evaluation.episodes import find_episodes
from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.results import AgentMemoryResult, EvaluationResult, ModeResult
from toolkit.evaluation.stage_context import Context
from toolkit.models.lengths import HAS_SPECIAL_TOKEN, PROMPT_TOO_LONG, count_lengths
from toolkit.models.prompts import Prompts
from toolkit.pipeline import read_results, write_results
from toolkit.runfolder import read_json, read_lines
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks.steps import replay

ALL = {"memory": ("reference", "own", "off")}


def second_tasks_fail_at_3(task: str, step: int, memory: dict[str, Any]) -> str:
    """The third step of every second episode is wrong, but its agent memory is right."""
    return wrong(task, step) if step == 3 and int(task) % 2 == 0 else right(task, step, memory)


def counts_what_is_done(task: str, step: int, memory: dict[str, Any]) -> str:
    """Takes the step number from its agent memory alone, and does not record step 2 of the episodes 3 and 4."""
    number = len(memory.get("completed_subtasks", [])) + 1
    done = json.loads(right(task, number, memory))
    if number == 2 and task in "34":
        del done["Long Term"], done["Short Term"]
    return json.dumps(done)


def mumbles_at_2(task: str, step: int, memory: dict[str, Any]) -> str:
    return "I would click there." if step == 2 else right(task, step, memory)


def run_evaluation(folder: Path, script: Script, evaluate_section: dict[str, Any] | None = None) -> EvaluationResult:
    with context_of(rolling_recipe(folder, evaluate_section)) as context:
        return evaluate(context, "before", None, [], Scripted(script))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    with context_of(rolling_recipe(tmp_path, ALL)) as made:
        yield made


def folder_of(context: Context, name: str = "before") -> Path:
    return context.run.path / "stages" / f"evaluate-{name}"


def agent_memory_of(result: EvaluationResult) -> AgentMemoryResult:
    assert result.agent_memory is not None
    return result.agent_memory


def mode_of(result: EvaluationResult, mode: str) -> ModeResult:
    return agent_memory_of(result).modes[mode]


def measured(result: EvaluationResult, mode: str) -> list[float | None]:
    """Return the fraction of correct steps, of correct episodes, and of an episode before its first failure."""
    return [one.value for one in mode_of(result, mode).metrics.values()]


def test_gui_steps_of_several_episodes_are_batched_with_the_agent_memory_of_earlier_answers(context: Context) -> None:
    backend = Scripted(second_tasks_fail_at_3)
    evaluate(context, "before", None, [], backend)
    first = [(task, 1) for task in TASKS]
    # Sixteen prompts with the reference agent memory in batches of three, then rounds of four episodes, then none.
    assert backend.batches[6:8] == [first[:3], first[3:]]
    assert [batch[0][1] for batch in backend.batches[6:14]] == [1, 1, 2, 2, 3, 3, 4, 4]
    done = ["Load volume", "Axial slice"]
    reference, own, off = backend.memories["2", 3]
    assert (reference["completed_subtasks"], own["completed_subtasks"], off) == (done, done, {})


def test_long_rows_are_generated_first_and_files_have_the_order_of_the_rows(context: Context) -> None:
    backend, samples = Scripted(right), list(context.data.test)
    evaluate(context, "before", None, [], backend)
    prompts = Prompts.of(context.recipe, context.images)
    processor = backend.load_without_model(context.recipe).processor
    lengths = [length.total for length in count_lengths(processor, prompts, samples, 10**6).lengths]
    steps = [step_of(prompts.row(sample)) for sample in samples]
    tokens = dict(zip(steps, lengths, strict=True))
    generated = [step for batch in backend.batches for step in batch][: len(samples)]  # the first mode
    assert sorted(generated) == sorted(steps)
    assert generated != steps
    assert [tokens[step] for step in generated] == sorted(lengths, reverse=True)
    for mode in ("predictions.jsonl", "predictions.off.jsonl"):
        lines = read_lines(folder_of(context) / mode)
        assert [line["id"] for line in lines] == [sample.id for sample in samples]


def test_scores_of_a_model_that_fails_at_step_3_of_every_second_episode(context: Context) -> None:
    record = evaluate(context, "before", None, [], Scripted(second_tasks_fail_at_3))
    for mode in ("reference", "own", "off"):
        # 14 of 16 steps, 2 of 4 episodes. Failed episodes have 2 of 4 steps before: (1 + 1/2 + 1 + 1/2) / 4.
        assert measured(record, mode) == [0.875, 0.5, 0.75]
        episodes = mode_of(record, mode).episodes
        assert (episodes.failing, episodes.first_failure.value) == ({3: 2}, 3.0)
        assert [one.value for one in episodes.survival.values()] == [1, 1, 0.5, 0.5]
    assert agent_memory_of(record).differences["own"]["reference"]["step"].difference.value == 0


def test_a_lost_agent_memory_entry_lowers_the_scores_of_later_steps(context: Context) -> None:
    record = evaluate(context, "before", None, [], Scripted(counts_what_is_done))
    # With the reference agent memory, every step is right. Its three finished subtasks imply COMPLETE for step 4.
    assert measured(record, "reference") == [1, 1, 1]
    # With its own agent memory, episodes 3 and 4 repeat step 2 at steps 3 and 4: 12 of 16 right.
    assert measured(record, "own") == [0.75, 0.5, 0.75]
    # Without agent memory, every answer is that of step 1: 4 of 16, and 1 of 4 before the first failure.
    assert measured(record, "off") == [0.25, 0, 0.25]
    differences = agent_memory_of(record).differences
    assert differences["own"]["reference"]["step"].difference.value == -0.25
    assert differences["own"]["off"]["step"].difference.value == 0.5
    assert differences["reference"]["off"]["whole tasks"].difference.value == 1
    # The bootstrap resamples episodes. Two of the four lose 2 of 4 steps.
    assert differences["own"]["reference"]["step"].difference.groups == 4


def test_an_unreadable_answer_keeps_the_agent_memory_and_counts_as_a_failure(context: Context) -> None:
    backend = Scripted(mumbles_at_2)
    record = evaluate(context, "before", None, [], backend)
    assert measured(record, "own") == [0.75, 0, 0.25]
    assert record.summary.overall.n == 16
    assert backend.memories["1", 3][1]["completed_subtasks"] == ["Load volume"]  # written by step 1
    details = [one for one in read_lines(folder_of(context) / "details.jsonl") if one["mode"] == "own"]
    second = details[1]
    assert second["problem"]
    assert second["agent_memory_after"] == {**second["agent_memory"], "failures": 1}


def test_the_history_can_be_reconstructed_from_the_predictions(context: Context) -> None:
    evaluate(context, "before", None, [], Scripted(mumbles_at_2))
    lines = [line for line in read_lines(folder_of(context) / "predictions.own.jsonl") if line["episode"] == "3"]
    assert [line["position"] for line in lines] == [1, 2, 3, 4]
    before = [{}, *(memory.long_term for memory in replay(lines))]
    assert [line["agent_memory"]["long_term"] for line in lines] == before[:4]


@pytest.mark.slow
@pytest.mark.parametrize("died_after", [3, 6, 9, 15])
def test_an_interrupted_evaluation_resumes_to_identical_files(tmp_path: Path, died_after: int) -> None:
    with context_of(rolling_recipe(tmp_path / "whole", ALL)) as whole:
        evaluate(whole, "before", None, [], Scripted(counts_what_is_done))
    with context_of(rolling_recipe(tmp_path / "died", ALL)) as died:
        with pytest.raises(KeyboardInterrupt):
            evaluate(died, "before", None, [], Scripted(counts_what_is_done, fail_after=died_after))
        for partial in folder_of(died).glob("predictions.own-*"):
            # A power failure within a line: the last answer of a batch is lost.
            partial.write_bytes(partial.read_bytes()[:-40])
        again = Scripted(counts_what_is_done)
        evaluate(died, "before", None, [], again)
    assert len(again.batches) < 20  # 6 batches, 8 rounds, 6 batches
    names = {path.name for path in folder_of(whole).iterdir()}
    assert names == {path.name for path in folder_of(died).iterdir()}
    assert names == {
        *("predictions.jsonl", "predictions.own.jsonl", "predictions.off.jsonl", "confusion.png"),
        *("predictions.csv", "details.jsonl", "metrics.json"),
    }
    for name in names:
        if not name.endswith("png"):
            assert (folder_of(whole) / name).read_bytes() == (folder_of(died) / name).read_bytes(), name


def test_rows_out_of_order_and_a_task_with_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*reversed(task_rows("1")), *(one for one in task_rows("2") if not one["Image_id"].endswith("_2"))]
    write_csv(tmp_path, rows, "test_results.csv")
    with context_of(rolling_recipe(tmp_path)) as context:
        backend = Scripted(right)
        record = evaluate(context, "before", None, [], backend)
        # Episode 2 has no step 2, so the agent memory for step 3 is unknown. Rows 1 and 4 remain.
        assert [step for batch in backend.batches[2:] for step in batch] == [
            *(("1", 1), ("2", 1)),
            *(("1", 2), ("1", 3), ("1", 4)),
        ]
        assert record.primary.value.n == 6
        own = mode_of(record, "own")
        assert (own.episodes.n, own.episodes.incomplete, own.metrics["step"].n) == (1, 1, 5)
        assert agent_memory_of(record).after_missing_step == 1
        assert record.also["step (own agent memory)"].baseline.n == 5
        with (folder_of(context) / "predictions.csv").open() as stream:
            table = list(csv.DictReader(stream))
    assert [(row["Task_id"], row["step"]) for row in table] == [("1", str(n)) for n in (1, 2, 3, 4)] + [
        ("2", "1"),
        ("2", "4"),
    ]
    assert (table[-1]["right_reference_agent_memory"], table[-1]["right_own_agent_memory"]) == ("1", "")
    assert table[-1]["problem_own_agent_memory"] == "after a missing step"
    warned = {problem.code: problem for problem in warnings_in(caplog)}
    assert warned["evaluate.questions_after_missing_step"].value == 1
    assert warned["evaluate.episodes_incomplete"].value == 1


def test_episodes_without_a_first_step_are_not_rolled_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [one for task in TASKS for one in task_rows(task) if not one["Image_id"].endswith("_1")]
    write_csv(tmp_path, rows, "test_results.csv")
    record = run_evaluation(tmp_path, right)
    # Step 2 is dropped, because its agent memory is unknown. Steps 3 and 4 have the reference agent memory.
    assert record.primary.value.n == 8
    assert list(agent_memory_of(record).modes) == ["reference"]
    assert next(iter(record.also)) == "action (reference agent memory)"  # there is no whole task
    assert "evaluate.no_first_steps" in [problem.code for problem in warnings_in(caplog)]


def test_episodes_end_at_the_first_missing_step() -> None:
    positions = [
        EpisodePosition("b", 2, 3),
        EpisodePosition("a", 1, 3),
        EpisodePosition("b", 1, 3),
        EpisodePosition("a", 3, 3),
        EpisodePosition("c", 2, 2),
    ]
    episodes, unreachable = find_episodes(positions)
    assert [(episode.name, episode.numbers) for episode in episodes] == [("b", (2, 0)), ("a", (1,))]
    assert unreachable == [3, 4]


def test_the_readable_files_have_reference_prediction_and_verdict(context: Context) -> None:
    record = evaluate(context, "before", None, [], Scripted(second_tasks_fail_at_3))
    with (folder_of(context) / "predictions.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 16
    assert [row["right_own_agent_memory"] for row in table].count("0") == 2
    row = table[6]
    assert (row["Task_id"], row["step"], row["image"]) == ("2", "3", "2_3.png")
    assert (row["reference_action"], row["action_own_agent_memory"]) == ("TEXT", "ZOOM")
    # The script answers 40, 270, which is 40 % and 270 % of 400 x 300 pixels in the tiny model's convention.
    assert (row["reference_coords"], row["coords_own_agent_memory"]) == ("[40.0, 270.0]", "[160.0, 810.0]")
    figures = read_json(folder_of(context) / "metrics.json")
    assert figures["agent_memory"]["modes"]["own"]["metrics"]["whole tasks"]["value"] == 0.5
    assert figures["primary"]["value"] == asdict(record.primary.value)
    details = read_lines(folder_of(context) / "details.jsonl")
    assert len(details) == 48
    assert {"agent_memory", "completion", "answer", "agent_memory_after", "scores"} <= details[0].keys()


def test_the_tables_have_both_baselines_and_every_mode(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    for name, script, earlier in (("before", mumbles_at_2, []), ("sft", counts_what_is_done, ["before"])):
        context.run.mark_done(f"evaluate-{name}", evaluate(context, name, None, earlier, Scripted(script)))
    results = write_results(context.run)
    assert list(results.tables)[:3] == [
        "step (reference agent memory)",
        "step (own agent memory)",
        "whole tasks (own agent memory)",
    ]
    rows = results.tables["step (own agent memory)"]
    assert [row.label for row in rows] == ["majority baseline", "repeat-last baseline", "before", "after SFT"]
    # The majority of four equally frequent steps is right once. No step repeats the previous one.
    assert [row.estimate.value for row in rows] == [0.25, 0, 0.75, 0.75]
    to_previous, to_baseline = rows[2].to_previous, rows[3].to_baseline
    assert to_previous is not None
    assert to_baseline is not None
    assert (to_previous.difference.value, to_baseline.difference.value) == (0.75, 0.5)
    whole = results.tables["whole tasks (own agent memory)"]
    assert [(row.estimate.value, row.estimate.n) for row in whole] == [(0, 4), (0, 4), (0, 4), (0.5, 4)]
    assert read_results(context.run.path) == results
    show.results(results)
    text = " ".join(capsys.readouterr().out.split())
    for words in ("agent-memory modes", "own - reference", "own - off", "mean first failure", "step by action"):
        assert words in text


def test_the_table_of_actions_has_the_majority_baseline(tmp_path: Path) -> None:
    # All targets differ except at the end, so the most frequent step is the end, and the most frequent action a click.
    steps = (("CLICK", "Open", [40, 60]), ("CLICK", "Save", [80, 60]), ("COMPLETE", "task", None))
    write_csv(tmp_path, [row(task, number, steps) for task in TASKS for number in (1, 2, 3)], "test_results.csv")
    recipe = rolling_recipe(tmp_path, {"memory": ("reference",)})
    ends = [row(task, 1, steps[2:]) for task in (11, 12)]
    write_csv(tmp_path, [*ends, *(row(13 + n, 1, (("CLICK", f"button {n}", [40, 60]),)) for n in range(3))])
    with context_of(recipe) as context:
        record = evaluate(context, "before", None, [], Scripted(lambda task, step, memory: "no answer"))
    assert record.primary.baseline.value == pytest.approx(1 / 3)
    action = record.also["action (reference agent memory)"]
    assert action.baseline.value == pytest.approx(2 / 3)
    assert action.differences["baseline"].difference.value == pytest.approx(-2 / 3)


def test_max_tasks_selects_whole_episodes_by_the_seed(tmp_path: Path) -> None:
    backend = Scripted(right)
    with context_of(rolling_recipe(tmp_path, {"max_tasks": 2, "memory": ("reference",)})) as context:
        record = evaluate(context, "before", None, [], backend)
    prompted = [step for batch in backend.batches for step in batch]
    assert len(prompted) == 8
    assert len({task for task, _ in prompted}) == 2
    assert record.also["whole tasks (reference agent memory)"].value.n == 2
    with (context.run.path / "stages/evaluate-before/predictions.csv").open() as stream:
        images = {row["image"] for row in csv.DictReader(stream)}
    assert images == {f"{task}_{step}.png" for task, step in prompted}


def test_prompts_without_agent_memory_are_generated_once(tmp_path: Path) -> None:
    backend = Scripted(right)
    with context_of(rolling_recipe(tmp_path, ALL, sections=("goal", "image"))) as context:
        record = evaluate(context, "before", None, [], backend)
    assert sum(map(len, backend.batches)) == 16
    assert record.score == "step (no agent memory)"
    assert agent_memory_of(record).differences == {}
    assert "whole tasks (no agent memory)" in record.also


def test_an_agent_memory_that_exceeds_the_prompt_is_a_counted_failure(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    def swells(task: str, step: int, memory: dict[str, Any]) -> str:
        output = json.loads(right(task, step, memory))
        output["Long Term"]["diary"] = ["all that was seen on this screen, word by word, " * 30] * 10
        return json.dumps(output)

    record = evaluate(context, "before", None, [], Scripted(swells))
    own = mode_of(record, "own")
    # The first step of each task is generated. The prompts of the three after it do not fit.
    assert own.skipped == {PROMPT_TOO_LONG: 12}
    assert measured(record, "own") == [0.25, 0, 0.25]
    assert own.metrics["step"].n == 16
    (warned,) = (problem for problem in warnings_in(caplog) if problem.code == "evaluate.prompts_skipped")
    assert warned.value == 12
    assert PROMPT_TOO_LONG in warned.rule
    lines = read_lines(folder_of(context) / "predictions.own.jsonl")
    assert sum(line["skipped"] == PROMPT_TOO_LONG for line in lines) == 12


def test_an_agent_memory_with_an_end_of_turn_is_a_counted_failure(context: Context) -> None:
    def speaks_in_tokens(task: str, step: int, memory: dict[str, Any]) -> str:
        output = json.loads(right(task, step, memory))
        output["Long Term"]["overall_progress"] = "done<end_of_turn>"
        return json.dumps(output)

    record = evaluate(context, "before", None, [], Scripted(speaks_in_tokens))
    assert mode_of(record, "own").skipped == {HAS_SPECIAL_TOKEN: 12}


def test_an_earlier_evaluation_is_compared_in_the_same_agent_memory_mode(tmp_path: Path) -> None:
    with context_of(rolling_recipe(tmp_path, {"memory": ("reference",)})) as first:
        first.run.mark_done("evaluate-before", evaluate(first, "before", None, [], Scripted(mumbles_at_2)))
        section = first.recipe.evaluation.model_copy(update={"memory": ("reference", "own")})
        second = Context(
            first.recipe.model_copy(update={"evaluate": section}), first.run, first.data, first.images, first.stop
        )
        record = evaluate(second, "sft", None, ["before"], Scripted(right))
    assert record.primary.differences["before"].difference.value == 0.25
    assert set(record.also["step (own agent memory)"].differences) == {"baseline", "repeat-last baseline"}


@pytest.mark.parametrize(
    ("setting", "code", "value"),
    [
        ("evaluate.limit=3", "recipe.limit_cuts_tasks", 3),
        ("data.limit_test=3", "recipe.limit_cuts_tasks", 3),
        ('evaluate.memory=["own"]', "recipe.evaluated_memory_invalid", ["own"]),
        ('evaluate.memory=["reference","reference"]', "recipe.evaluated_memory_invalid", ["reference"] * 2),
    ],
)
def test_settings_that_split_episodes_or_evaluate_nothing_are_rejected(
    tmp_path: Path, setting: str, code: str, value: object
) -> None:
    rolling_recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "rolling.toml", [setting])
    (problem,) = caught.value.problems
    assert (problem.code, problem.place, problem.value) == (code, f"--set {setting.partition('=')[0]}", value)


@pytest.mark.parametrize("setting", ["evaluate.max_tasks=2", 'evaluate.memory=["reference"]'])
def test_other_tasks_have_neither_episodes_nor_agent_memory(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "mcq.toml"
    file.write_text('[run]\nname = "one"\n[data]\ntask = "mcq"\ntrain = "t.json"\ntest = "t.json"\n[evaluate]\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [setting])
    assert [problem.code for problem in caught.value.problems] == ["recipe.key_of_other_task"]
    assert caught.value.problems[0].place == f"--set {setting.partition('=')[0]}"
