"""Exact bytes of optimizer state on fixed models, and the peaks that compilers and devices tell."""

from optim_bench.report.memory._report import MODELS, PRESETS, Model, memory_markdown, memory_report

__all__ = ["MODELS", "PRESETS", "Model", "memory_markdown", "memory_report"]
