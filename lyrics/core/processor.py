"""The old place of the preprocessing of images. Import from ``lyrics.core.pictures.processor``; this module goes in 0.3."""

from __future__ import annotations

import warnings

from lyrics.core.pictures.processor import ModelImages as ModelImages
from lyrics.core.pictures.processor import Processor as Processor
from lyrics.core.pictures.processor import prepare as prepare
from lyrics.core.pictures.processor import prepare_one as prepare_one

warnings.warn(
    "lyrics.core.processor is now lyrics.core.pictures.processor. The old module goes in 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
