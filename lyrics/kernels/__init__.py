"""Attention over packed streams, and from query sets to images. Depends on torch alone."""

from lyrics.kernels.attention import (
    IMPLEMENTATIONS,
    Availability,
    ImplementationError,
    available_implementations,
    cross_attention,
    explain,
    prepare,
    segment_attention,
)
from lyrics.kernels.cross import CrossPlan, build_cross_plan
from lyrics.kernels.plan import Layout, Plan, PlanError, Segment, StreamGroup, build_plan

__all__ = [
    "IMPLEMENTATIONS",
    "Availability",
    "CrossPlan",
    "ImplementationError",
    "Layout",
    "Plan",
    "PlanError",
    "Segment",
    "StreamGroup",
    "available_implementations",
    "build_cross_plan",
    "build_plan",
    "cross_attention",
    "explain",
    "prepare",
    "segment_attention",
]
