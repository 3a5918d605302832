"""Optimizer comparisons that a sceptic accepts: real data, equal budgets, paired intervals."""

__version__ = "0.1.0"
