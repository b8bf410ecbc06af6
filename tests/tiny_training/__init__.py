"""Training of the tiny model that ships in ``toolkit/tiny/model``. Run ``python -m tests.tiny_training.make``."""
