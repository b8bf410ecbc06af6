"""Run the stages of a recipe in order, resume them, and collect their results."""

from toolkit.evaluation.results import ResultRow
from toolkit.pipeline.run import Stages, run_recipe
from toolkit.pipeline.run_results import RunResults, read_results, write_results

__all__ = ["ResultRow", "RunResults", "Stages", "read_results", "run_recipe", "write_results"]
