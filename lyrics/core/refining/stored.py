"""Stored refinements by image.

They are found by the path that a data set has for it, though they were written under another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath

from lyrics.core.errors import DatasetError
from lyrics.core.refining.refinement import Refinement


class StoredRefinements(Mapping[str, Refinement]):
    """Refinements by image name.

    A name that is not there as written stands for the one image whose path ends as it does, or which ends as that path
    does: ``lyrics refine`` writes paths as it was given them, a data set names images from its own folder.

    Args:
        refinements: in any order.
        source: where they came from, for messages.
    """

    def __init__(self, refinements: Iterable[Refinement], source: object) -> None:
        self._by_path = {one.name: one for one in refinements}
        self._source = source
        self._by_file: dict[str, list[Refinement]] = {}
        for one in self._by_path.values():
            self._by_file.setdefault(PurePath(one.name).name, []).append(one)

    def __getitem__(self, name: str) -> Refinement:
        """Raises ``DatasetError`` for a name that may be any of several images, ``KeyError`` for one that is none."""
        if name in self._by_path:
            return self._by_path[name]
        parts = PurePath(name).parts
        found = [one for one in self._by_file.get(PurePath(name).name, ()) if same_end(parts, PurePath(one.name).parts)]
        if len(found) > 1:
            paths = ", ".join(one.name for one in found[:3])
            raise DatasetError(f"{name} may be any of {paths} in {self._source}; give images names of their own.")
        if not found:
            raise KeyError(name)
        return found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)


def same_end(one: tuple[str, ...], two: tuple[str, ...]) -> bool:
    """Return whether the shorter path is the end of the longer one."""
    shared = min(len(one), len(two))
    return one[-shared:] == two[-shared:]
