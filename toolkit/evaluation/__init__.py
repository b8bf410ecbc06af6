"""Evaluation: completions on held-out rows, scored, with intervals, baselines and differences."""
