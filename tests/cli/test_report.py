"""``lyrics report``: the page's path, and its errors."""

from __future__ import annotations

from pathlib import Path

from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.rows import OBJECTS_FILE, row_line
from tests.commands import Run


def test_the_page_is_written_into_the_folder_or_where_one_wants_it(tmp_path: Path, run: Run) -> None:
    (tmp_path / OBJECTS_FILE).write_bytes(row_line(Refinement((4, 3), (), (), "a.jpg").to_json()))
    done = run("report", str(tmp_path))
    assert (done.code, done.out) == (0, f"{tmp_path / 'report.html'} written\n")
    assert "<h2>Samples</h2>" in (tmp_path / "report.html").read_text()
    assert run("report", str(tmp_path), "--out", str(tmp_path / "other.html")).code == 0
    nowhere = run("report", str(tmp_path), "--out", str(tmp_path / "no" / "page.html"))
    assert nowhere.code == 1
    assert "page.html: cannot be written: No such file or directory" in nowhere.err


def test_a_folder_that_holds_no_rows_is_one_sentence(tmp_path: Path, run: Run) -> None:
    done = run("report", str(tmp_path))
    assert (done.code, len(done.err.splitlines())) == (1, 1)
