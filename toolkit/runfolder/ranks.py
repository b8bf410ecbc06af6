"""Several processes of one run (`accelerate launch`): which one this is, and which of them writes.

The launcher says so in the environment, as torch.distributed has it. Rank 0 does everything that one process would;
the others only train beside it.
"""

import os


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work on the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes the run folder and tells of it."""
    return rank() == 0
