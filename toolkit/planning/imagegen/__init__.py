"""The plan of a recipe with [imagegen]: ratings, steps, GPU memory, RAM, hours and disk, before anything is spent."""

from toolkit.planning.imagegen.make import make_imagegen_plan
from toolkit.planning.imagegen.plan import ImagegenPlan

__all__ = ["ImagegenPlan", "make_imagegen_plan"]
