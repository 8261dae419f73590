"""The old place of the records of a manifest.

Import them from ``lyrics``; this module goes with the release after next.
"""

from __future__ import annotations

from lyrics.core.registry.component import CheckpointOptions as CheckpointOptions
from lyrics.core.registry.component import Component as Component
from lyrics.core.registry.component import Converter as Converter
from lyrics.core.registry.component import NamesWeights as NamesWeights
from lyrics.core.registry.component import NoOptions as NoOptions
from lyrics.core.registry.component import Options as Options
from lyrics.core.registry.component import Preset as Preset
from lyrics.core.registry.component import hookimpl as hookimpl
from lyrics.core.renaming import warn_former_name

warn_former_name(__name__, "lyrics", stacklevel=2)
