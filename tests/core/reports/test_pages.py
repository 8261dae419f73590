"""Pages of reports: nothing on them runs or is fetched, what is said is text, and both color schemes can be read."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from pathlib import Path

import jinja2
import pytest
from PIL import Image

from lyrics.core.reports import pages

ROOT = Path(__file__).parents[3]
HERE = ROOT / "lyrics" / "core" / "reports"
#: Every report's template.
TEMPLATES = sorted(path for path in (ROOT / "lyrics").rglob("*.html") if path.parent != HERE)
STYLE = (HERE / "report.css").read_text(encoding="utf-8")


def test_what_is_said_is_text(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text(
        '{% extends "report.html" %}{% from "parts.html" import table, facts %}{% block body %}'
        '<img alt="{{ said }}">{{ table([said], [[said]], said) }}{{ facts({said: said}) }}{% endblock %}'
    )
    said = "\"'><script>alert(1)</script>{{ 7 * 7 }}&amp;"
    found = pages.page(tmp_path / "one.html", title=said, said=said)
    assert "<script" not in found
    assert "49" not in re.sub(r"<style>.*?</style>", "", found, flags=re.DOTALL)
    assert found.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}&amp;amp;") == 8
    assert found.count("<table>") == 2
    assert "default-src 'none'; img-src data:" in found
    assert found.endswith("</html>\n")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text('{% extends "report.html" %}{% block body %}{{ nothing }}{% endblock %}')
    with pytest.raises(jinja2.UndefinedError, match="nothing"):
        pages.page(tmp_path / "one.html", title="x")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_report_has_the_one_style(path: Path) -> None:
    """And nothing of its own that is fetched, runs, or is taken for markup, but for charts."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{% extends "report.html" %}')
    assert not re.search(r"<(script|link|iframe|style|a)\b|style=|\son\w+=|https?:", text)
    assert set(re.findall(r"(\w+) \| safe", text)) <= {"chart", "curve"}
    for tag in re.findall(r"<img [^>]*>", text):
        assert "alt=" in tag


def test_templates_are_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["lyrics"]
    for path in (*TEMPLATES, *HERE.glob("*.html"), *HERE.glob("*.css")):
        assert any(path.relative_to(ROOT / "lyrics").match(pattern) for pattern in patterns), path
    assert len(TEMPLATES) >= 4
    assert any(one.startswith("jinja2") for one in project["project"]["dependencies"])


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it, of ``#rrggbb``."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_texts_can_be_read_in_light_and_in_dark() -> None:
    """Contrasts of 4.5 and more (WCAG 2, level AA)."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    assert len(schemes) == 2
    assert schemes[0].keys() == schemes[1].keys()
    for scheme in schemes:
        for ground in ("ground", "raised", "changed"):
            assert contrast(scheme["ink"], scheme[ground]) >= 4.5
        for ground in ("ground", "raised"):
            assert contrast(scheme["quiet"], scheme[ground]) >= 4.5
        assert contrast(scheme["accent"], scheme["ground"]) >= 3, "what shows the focus"
    assert luminance(schemes[0]["ground"]) > 0.9
    assert luminance(schemes[1]["ground"]) < 0.1


def test_images_as_data() -> None:
    large = Image.new("RGBA", (400, 100), (255, 0, 0, 255))
    url = pages.data_url(large, 100)
    assert url.startswith("data:image/jpeg;base64,")
    opened = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert (opened.size, large.size) == ((100, 25), (400, 100))
    url = pages.data_url(large, 1000, lossless=True)
    assert url.startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (400, 100)
