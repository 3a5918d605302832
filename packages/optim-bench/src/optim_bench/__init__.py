"""Optimizer comparisons that a sceptic accepts: real data, equal tuning budgets, paired intervals."""
