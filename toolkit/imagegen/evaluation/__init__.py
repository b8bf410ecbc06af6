"""Metrics of generated images, with intervals and paired differences."""
