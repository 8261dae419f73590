"""Show the notebooks as pages of the site: a hook of mkdocs, named in mkdocs.yml.

Each ``docs/notebooks/NAME.ipynb`` becomes a page ``notebooks/NAME.md`` of its Markdown and code, with a link to the
notebook itself. Notebooks are kept without outputs, so there are none to show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for path in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_markdown(notebook, path.name)))
    return files


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """Return the cells of a notebook as one Markdown text; ``name`` is linked below the heading of the first cell."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    heading, _, rest = parts[0].partition("\n")
    parts[0] = f"{heading}\n\n[Download the notebook]({name})\n{rest}"
    return "\n\n".join(parts) + "\n"
