"""What this machine has for a run, what is wrong with it, and what to do: each library is loaded in its own process."""

from toolkit.diagnostics.examine import Examination, examine
from toolkit.diagnostics.finding import STATES, Finding, State
from toolkit.runfolder import TESTED

__all__ = ["STATES", "TESTED", "Examination", "Finding", "State", "examine"]
