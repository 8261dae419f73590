"""Correctness, then time: attention and the stage-1 step against their rivals."""
