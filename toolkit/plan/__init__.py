"""What a run will need, told before anything is spent."""

from toolkit.plan.findings import Finding
from toolkit.plan.gpu import Gpu, described_gpu, find_gpu, named_gpu
from toolkit.plan.make import Rows, make_plan
from toolkit.plan.record import Plan

__all__ = ["Finding", "Gpu", "Plan", "Rows", "described_gpu", "find_gpu", "make_plan", "named_gpu"]
