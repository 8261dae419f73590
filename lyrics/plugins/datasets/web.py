"""Images from the web with their alt texts: LAION, Conceptual Captions (3M and 12M), SBU.

All are published as lists of addresses, and turned into tar shards by img2dataset: ``KEY.jpg``, ``KEY.txt`` (the
caption), ``KEY.json`` (caption, url, width, height, ...). The shards are what one trains on. A list of addresses can be
read too; its samples have captions and, as ``extra["url"]``, an address, but no image, since nothing is downloaded
here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.data.readers import (
    Home,
    JsonRecords,
    LineRecords,
    ParquetRecords,
    RecordDataset,
    Records,
    Row,
    TarRecords,
    captioned,
    columns_of,
    scores_of,
    shards_in,
    tar_sample,
)
from lyrics.core.errors import DatasetError
from lyrics.core.types import Sample


def laion(options: Any, context: BuildContext) -> RecordDataset:
    """List of addresses: parquet with URL and TEXT (and WIDTH, HEIGHT, similarity, LICENSE, NSFW)."""
    return _web(options, "laion")


def cc3m(options: Any, context: BuildContext) -> RecordDataset:
    """List of addresses: a table without a header, *caption* before *url* (CC12M has them the other way round)."""
    return _web(options, "cc3m", columns=("caption", "url"))


def cc12m(options: Any, context: BuildContext) -> RecordDataset:
    """List of addresses: a table without a header, *url* before *caption* (CC3M has them the other way round)."""
    return _web(options, "cc12m", columns=("url", "caption"))


def sbu(options: Any, context: BuildContext) -> RecordDataset:
    """List of addresses: JSON with two lists of equal length, ``image_urls`` and ``captions``."""
    return _web(options, "sbu")


def _web(options: Any, name: str, columns: tuple[str, ...] = ()) -> RecordDataset:
    home = Home.of(name, options.root)
    shards = shards_in(home.root) if home.root.is_dir() else []
    if shards:
        tars = TarRecords(shards)
        return RecordDataset(name, tars, tar_sample, tars)
    return RecordDataset(name, _addresses(home, columns), _address)


def _addresses(home: Home, columns: tuple[str, ...]) -> Records:
    if columns and (tables := home.find("*.tsv")):
        return LineRecords(tables, columns)
    if parquet := home.find("*.parquet"):
        return ParquetRecords(parquet)
    if lists := home.find("*.json"):
        return JsonRecords(lists, partial(columns_of, names={"image_urls": "url", "captions": "caption"}))
    raise DatasetError(f"{home.root}: has neither tar shards nor a list of addresses. {home.hint}")


def _address(record: Any) -> Sample:
    """From a list of addresses; LAION's own index spells its columns in capitals."""
    row = Row(record)
    caption, url = ("TEXT", "URL") if row.has("URL") or row.has("TEXT") else ("caption", "url")
    # A site without an alt text has a null there.
    return captioned(
        None, row.text(caption) if row.value(caption) is not None else "", url=row.text(url), **scores_of(row)
    )
