"""The stages of a recipe in order, with resume, and the table of results they end in."""

from toolkit.pipeline.results import ResultRow, Results, read_results, write_results
from toolkit.pipeline.run import Stages, evaluation_step, plan_steps, run_recipe, run_step

__all__ = [
    "ResultRow",
    "Results",
    "Stages",
    "evaluation_step",
    "plan_steps",
    "read_results",
    "run_recipe",
    "run_step",
    "write_results",
]
