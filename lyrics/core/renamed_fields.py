"""Former names of the fields of records and options: see ``lyrics.core.renaming``. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from lyrics.core.renaming import current_names, warn_former_name

#: ``type`` of a validation error for a value that is given under both of its names.
BOTH_NAMES = "both_names"


class FormerNames(BaseModel):
    """A mixin for records whose fields were renamed: ``FORMER_NAMES`` says how each was called.

    Data under a former name are accepted, and the attribute can be read under it, both with a warning.
    """

    # No validator before one is needed: pydantic looks at the metadata of all distributions then, damaged ones too.
    model_config = ConfigDict(defer_build=True)

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take_former_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not any(former in data for former in cls.FORMER_NAMES):
            return data
        return current_names(
            data, cls.FORMER_NAMES, error=lambda text: PydanticCustomError(BOTH_NAMES, "{text}", {"text": text})
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        if update and any(former in update for former in self.FORMER_NAMES):
            update = current_names(update, self.FORMER_NAMES)
        return super().model_copy(update=update, deep=deep)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            current = type(self).FORMER_NAMES.get(name)
            if current is None:
                return super().__getattr__(name)
            warn_former_name(f"{type(self).__name__}.{name}", f"{type(self).__name__}.{current}")
            return getattr(self, current)
