"""Models that score images: selector, judge, policy and feature extractor, with their training and metrics."""
