"""Five readers cover every public format that lyrics trains and evaluates on.

==================  ==========================================================  =======================================
reader              reads                                                       a record is
==================  ==========================================================  =======================================
``JsonRecords``     JSON files, parsed at first use                             what ``rows`` makes of the parsed file
``LineRecords``     JSON lines and tab-separated columns, by line offset        a line
``CocoRecords``     COCO-style JSON                                             an image, its captions and annotations
``RefRecords``      refs and instances of the refer toolkit                     an expression, its annotation and image
``TarRecords``      webdataset shards through an offset index, in place         the members of one key
``ParquetRecords``  parquet files (needs pyarrow)                               a row
==================  ==========================================================  =======================================

(JSON and JSON lines count as one.) A ``RecordDataset`` is such a reader and a function that turns a record into a
``Sample``; ``Fields`` is that function for flat records.
"""

from lyrics.core.data.readers.coco import CocoRecords
from lyrics.core.data.readers.dataset import RecordDataset, Records
from lyrics.core.data.readers.files import Home, PictureFolder, ReadOnDemand
from lyrics.core.data.readers.json_files import (
    JsonRecords,
    LineRecords,
    Lookup,
    columns_of,
    keyed,
    listed,
    records_of,
    taken_apart,
)
from lyrics.core.data.readers.parquet import ParquetRecords
from lyrics.core.data.readers.refs import RefRecords
from lyrics.core.data.readers.row import Row, kept
from lyrics.core.data.readers.samples import (
    Answers,
    Fields,
    annotated,
    answers_of,
    captioned,
    question_and_answers,
    scores_of,
    tar_sample,
)
from lyrics.core.data.readers.tar import TarRecords, shards_in, write_index

__all__ = [
    "Answers",
    "CocoRecords",
    "Fields",
    "Home",
    "JsonRecords",
    "LineRecords",
    "Lookup",
    "ParquetRecords",
    "PictureFolder",
    "ReadOnDemand",
    "RecordDataset",
    "Records",
    "RefRecords",
    "Row",
    "TarRecords",
    "annotated",
    "answers_of",
    "captioned",
    "columns_of",
    "kept",
    "keyed",
    "listed",
    "question_and_answers",
    "records_of",
    "scores_of",
    "shards_in",
    "taken_apart",
    "tar_sample",
    "write_index",
]
