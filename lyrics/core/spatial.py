"""The old place of the text forms of boxes. Import from ``lyrics.core.language.codecs``; this module goes in 0.3."""

from __future__ import annotations

from lyrics.core.language.codecs import CODECS as CODECS
from lyrics.core.language.codecs import Codec as Codec
from lyrics.core.language.codecs import Parsed as Parsed
from lyrics.core.language.codecs import Problem as Problem
from lyrics.core.language.codecs import SpatialObject as SpatialObject
from lyrics.core.language.codecs import format_box as format_box
from lyrics.core.language.codecs import format_objects as format_objects
from lyrics.core.language.codecs import parse as parse
from lyrics.core.renaming import warn_former_name

warn_former_name(__name__, "lyrics.core.language.codecs", stacklevel=2)
