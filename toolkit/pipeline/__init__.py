"""Run the stages of a recipe in order, resume them, and collect their results."""

from toolkit.pipeline.results import ResultRow, Results, read_results, write_results
from toolkit.pipeline.run import Stages, run_recipe

__all__ = ["ResultRow", "Results", "Stages", "read_results", "run_recipe", "write_results"]
