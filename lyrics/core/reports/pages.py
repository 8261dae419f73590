"""Reports as HTML pages of one style.

Each is one file that runs nothing and fetches nothing, and is light or dark as its reader's system is. A report's
template extends ``report.html`` of this folder and lies beside the code that fills it in; whatever a model, a data set
or a file name says is escaped.
"""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from PIL import Image

_HERE = Path(__file__).parent


def page(template: Path, **values: Any) -> str:
    """Return a template filled in.

    Args:
        template: a file that extends ``report.html``.
        values: what it names; ``title`` among them. Texts are escaped, unless the template says ``safe``.

    Raises:
        jinja2.TemplateError: the template is malformed, or names what ``values`` lacks.
    """
    return _environment(template.parent).get_template(template.name).render(**values)


@functools.cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def data_url(picture: Image.Image, side_px: int | None = None, *, lossless: bool = False) -> str:
    """Return an image as a data URL, with its longer side ``side_px`` pixels long if it is longer.

    JPEG, or PNG where it is to be ``lossless``.
    """
    small = picture.copy()
    if side_px is not None:
        small.thumbnail((side_px, side_px))
    out = io.BytesIO()
    if lossless:
        small.save(out, "PNG")
    else:
        small.convert("RGB").save(out, "JPEG", quality=85)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
