"""RLHF for medical image generators: expert ratings, selector, policy, generator updates and their judge."""
