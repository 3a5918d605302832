"""Optimizer comparisons that a sceptic accepts: real data, equal budgets, paired intervals."""
