"""Free-text reports of radiology and pathology images: findings, impression, or the whole report."""

from toolkit.data.task import SetMetrics, Task
from toolkit.tasks.report_generation.metrics import baseline, finding_baseline, labels, part, scores, set_values
from toolkit.tasks.report_generation.parse import parse
from toolkit.tasks.report_generation.prompt import instruction, question, target
from toolkit.tasks.report_generation.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.report_generation.schema import COLUMNS, ReportGeneration, notes, placeholders, read
from toolkit.tasks.report_generation.synthetic import CHEST_REPORTS

__all__ = ["REPORT_GENERATION"]

REPORT_GENERATION = Task(
    name="report_generation",
    description="reports of medical images",
    columns=COLUMNS,
    required=frozenset({"report|findings|impression", "image"}),
    leaking=frozenset(name for field in ("report", "findings", "impression") for name in COLUMNS[field]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="rouge_l",
    labels=labels,
    baseline=baseline,
    baselines={"finding_f1": finding_baseline},
    also=("finding_f1", "bleu"),
    set_metrics=SetMetrics(part, set_values),
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    settings_model=ReportGeneration,
    synthetic=CHEST_REPORTS,
    placeholders=placeholders,
    notes=notes,
    needs_image=True,
)
