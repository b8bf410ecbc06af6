"""Multiple choice with reasoning: rows of ReXVQA, answers with working out and solution, their parser and scores."""

from toolkit.data.task import Task
from toolkit.tasks.mcq.benchmarks import BENCHMARKS
from toolkit.tasks.mcq.metrics import RESULTS_BY, baseline, labels, scores
from toolkit.tasks.mcq.parse import parse
from toolkit.tasks.mcq.prompt import instruction, question, target
from toolkit.tasks.mcq.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.mcq.schema import COLUMNS, REASONING, Mcq, read
from toolkit.tasks.mcq.synthetic import CHEST

__all__ = ["MCQ"]

MCQ = Task(
    name="mcq",
    description="multiple-choice questions about medical images, with reasoning",
    columns=COLUMNS,
    required=frozenset({"question", "options|option_a", "answer|answer_letter|answer_index", "image"}),
    leaking=frozenset(
        name
        for field in ("answer", "answer_letter", "answer_index", "explanation", "findings", "impression")
        for name in COLUMNS[field]
    ),
    one_value=frozenset({"question", "options", "answer", "answer_letter", "answer_index"}),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="accuracy",
    labels=labels,
    baseline=baseline,
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    results_by=RESULTS_BY,
    settings_model=Mcq,
    from_rows=REASONING,
    synthetic=CHEST,
    takes_options=True,
    placeholders=lambda settings: {"answer": "A"},
    zero_shot={"reasoning": False},
    benchmarks=BENCHMARKS,
)
