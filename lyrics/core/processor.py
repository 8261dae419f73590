"""The old place of the preprocessing of images.

Import from ``lyrics.core.pictures.processor``; this module goes in 0.3.
"""

from __future__ import annotations

from lyrics.core.pictures.processor import ModelImages as ModelImages
from lyrics.core.pictures.processor import Processor as Processor
from lyrics.core.pictures.processor import prepare as prepare
from lyrics.core.pictures.processor import prepare_one as prepare_one
from lyrics.core.renaming import warn_former_name

warn_former_name(__name__, "lyrics.core.pictures.processor", stacklevel=2)
