"""Metrics of the benchmarks, one file each: plain functions of texts, numbers and boxes. No file imports torch.

Shares are from 0 to 1 here; reports print them times 100.
"""
