"""Plan a run before it starts: parameters, tokens, GPU memory, time, disk, and known problems."""

from toolkit.planning.findings import PlanFinding
from toolkit.planning.gpu import Gpu, described_gpu, find_gpu, named_gpu
from toolkit.planning.plan import Plan, make_plan
from toolkit.planning.tokens import Rows

__all__ = ["Gpu", "Plan", "PlanFinding", "Rows", "described_gpu", "find_gpu", "make_plan", "named_gpu"]
