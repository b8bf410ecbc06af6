"""RLHF for medical image generators: ratings, reward models, generator updates, and a judge that is never a reward."""
