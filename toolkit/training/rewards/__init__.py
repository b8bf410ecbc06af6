"""Rewards for GRPO: scores in [0, 1] of one answer, their weights, and their statistics over a step."""

from toolkit.training.rewards.custom import custom_name, load_custom
from toolkit.training.rewards.explain import Explanation, explain
from toolkit.training.rewards.statistics import GroupStatistics, RewardSummary, group_statistics
from toolkit.training.rewards.table import REWARDS, RewardTable, ScoredAnswer, reward_table

__all__ = [
    "REWARDS",
    "Explanation",
    "GroupStatistics",
    "RewardSummary",
    "RewardTable",
    "ScoredAnswer",
    "custom_name",
    "explain",
    "group_statistics",
    "load_custom",
    "reward_table",
]
