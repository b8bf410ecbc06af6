"""Diagnose this machine: findings with remedies. Each library is imported in its own process."""

from toolkit.diagnostics.examine import Examination, examine
from toolkit.diagnostics.finding import STATES, Finding, State
from toolkit.diagnostics.libraries import LIBRARIES

__all__ = ["LIBRARIES", "STATES", "Examination", "Finding", "State", "examine"]
