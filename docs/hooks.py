"""Show CONTRIBUTING.md, which is outside of docs/, as a page of the site."""

import re
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the text of contributing.md by that of CONTRIBUTING.md, with its links as they are inside of docs/."""
    if page.file.src_uri != "contributing.md":
        return markdown
    guide = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((?!docs/|https?:|#)[^)]+\)", r"\1", guide).replace("](docs/", "](")
