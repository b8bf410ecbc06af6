"""RLHF for medical image generators: ratings, selector, policy, judge, generator updates, metrics and guards."""
