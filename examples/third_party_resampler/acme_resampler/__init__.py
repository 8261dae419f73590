"""The manifest: what the plugin provides, without importing the heavy part."""

from pydantic import Field

from lyrics import Component, Options, hookimpl


class ResamplerOptions(Options):
    """Options of ``acme-resampler``."""

    num_queries: int = Field(16, ge=1, description="soft tokens for each image")
    hidden_size: int = Field(64, ge=8, description="width of the queries")
    num_layers: int = Field(2, ge=1, description="how often the queries read the image")
    num_heads: int = Field(4, ge=1, description="attention heads; divides hidden_size")

    @property
    def segments(self):
        """Visual queries alone: no text, so no objective that needs some."""
        return ("V",)


@hookimpl
def lyrics_components():
    yield Component(
        kind="query-transformer",
        name="acme-resampler",
        build="acme_resampler.model:AcmeResampler",
        options=ResamplerOptions,
        summary="a Perceiver-style resampler: learned queries read the image tokens, and nothing else",
    )
