"""Run the stages of a recipe in order, resume them, and collect their results."""

from toolkit.pipeline.results import ResultRow, RunResults, read_results, write_results
from toolkit.pipeline.run import Stages, run_recipe

__all__ = ["ResultRow", "RunResults", "Stages", "read_results", "run_recipe", "write_results"]
