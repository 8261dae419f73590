"""``lyrics report FOLDER``: one HTML page of what ``lyrics refine`` found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._output import print_text


def report(
    folder: Annotated[Path, typer.Argument(help="The --out of 'lyrics refine', or of 'lyrics data merge'.")],
    out: Annotated[Path | None, typer.Option(help="The page to write.  [default: FOLDER/report.html]")] = None,
) -> None:
    """Write counts by tag, scores, the smallest and largest boxes, twenty drawn images, and failures as one page.

    It needs no other file and no network. Images that are no longer where they were are left out of the drawings.
    """
    from lyrics.core.errors import LyricsError
    from lyrics.core.files import name_for_messages
    from lyrics.workflows.refine_report import REPORT_FILE, write_report

    try:
        page = write_report(folder, out)
    except OSError as error:
        target = out or folder / REPORT_FILE
        raise LyricsError(f"{name_for_messages(target)}: cannot be written: {error.strerror or error}.") from error
    print_text(f"{name_for_messages(page)} written")
