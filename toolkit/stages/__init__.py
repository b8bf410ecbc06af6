"""Stages: each reads the run folder, does one thing, and writes the run folder."""
