"""Faults: kills, missing resources and bad input. `python -m tests.faults --help` shows how to run them."""
