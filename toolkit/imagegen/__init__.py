"""RLHF for medical image generators: ratings, reward models, generator, updates, judge and guards."""
