"""Hook of mkdocs: links to files outside docs/ lead to the repository, or name the file where its address is unknown.

`repo_url` of mkdocs.yml, or of the environment through `REPO_URL`, is that address; the docs workflow sets it.
"""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, config: Any, **kwargs: Any) -> str:
    """Rewrite the links of one page.

    Args:
        markdown: The page.
        config: Of the site.
        kwargs: What else mkdocs hands out.
    """
    repository = (config["repo_url"] or "").rstrip("/")

    def rewritten(link: re.Match[str]) -> str:
        text, path = link.groups()
        if repository:
            return f"[{text}]({repository}/blob/main/{path})"
        return f"{text} (`{path}` in the repository)" if path not in text else text

    return _LINK.sub(rewritten, markdown)
