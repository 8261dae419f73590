"""Evaluation: metrics, what a benchmark is, and the runner that writes predictions, scores and the worst cases."""
