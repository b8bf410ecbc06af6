"""Open and closed questions with short answers, in the style of VQA-RAD and SLAKE."""

from toolkit.data.task import Task
from toolkit.tasks.vqa.benchmarks import BENCHMARKS
from toolkit.tasks.vqa.metrics import RESULTS_BY, baseline, labels, scores
from toolkit.tasks.vqa.parse import parse
from toolkit.tasks.vqa.prompt import instruction, notes, question, target
from toolkit.tasks.vqa.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.vqa.schema import COLUMNS, Vqa, read
from toolkit.tasks.vqa.synthetic import CHEST_VQA

__all__ = ["VQA"]

VQA = Task(
    name="vqa",
    description="open and closed questions about medical images",
    columns=COLUMNS,
    required=frozenset({"question", "answer", "image"}),
    leaking=frozenset({*COLUMNS["answer"], *COLUMNS["alternatives"], "Findings", "Impression"}),
    one_value=frozenset({"question", "answer"}),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="score",
    labels=labels,
    baseline=baseline,
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    results_by=RESULTS_BY,
    settings_model=Vqa,
    synthetic=CHEST_VQA,
    notes=notes,
    placeholders=lambda settings: {"answer": "unknown"},
    benchmarks=BENCHMARKS,
)
