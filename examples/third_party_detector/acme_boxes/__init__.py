"""The manifest: what the plugin provides, without importing the heavy part."""

from pydantic import Field

from lyrics import Component, Options, hookimpl


class BoxesOptions(Options):
    """Options of ``acme-boxes``."""

    score_threshold: float = Field(0.25, ge=0, le=1, description="detections whose score is lower are not reported")
    feature_dim: int = Field(12, ge=1, description="width of a local token")


@hookimpl
def lyrics_components():
    yield Component(
        kind="detector",
        name="acme-boxes",
        build="acme_boxes.model:AcmeBoxes",
        options=BoxesOptions,
        summary="boxes around what has the color that a phrase names",
    )
