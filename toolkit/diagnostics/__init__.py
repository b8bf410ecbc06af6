"""What this machine has for a run, what is wrong with it, and what to do: each library is loaded in its own process."""

from toolkit.diagnostics.examine import Examination, examine
from toolkit.diagnostics.finding import STATES, Finding, State
from toolkit.diagnostics.libraries import LIBRARIES

__all__ = ["LIBRARIES", "STATES", "Examination", "Finding", "State", "examine"]
