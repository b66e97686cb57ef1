"""Benchmark scores: torchmetrics over pure scoring rules, and the table of benchmarks."""
