"""The plan of a recipe with [imagegen]: ratings, steps, GPU memory, RAM, hours and disk, before anything is spent."""

from toolkit.plan.imagegen.make import make_imagegen_plan
from toolkit.plan.imagegen.record import ImagegenPlan

__all__ = ["ImagegenPlan", "make_imagegen_plan"]
