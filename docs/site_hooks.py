"""What the documentation's site needs beside mkdocs.yml.

README.md, CONTRIBUTING.md and CHANGELOG.md stand at the repository's root, for those who read it
there; the site has them as pages. A link between pages is turned into the site's; a link to any
other file of the repository becomes the file's name, since the site does not hold it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File at the root -> page of the site."""

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
_IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^):\s]+)\)")


def on_files(files, config):
    for name, page in PAGES.items():
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    at_root = page.file.src_uri in PAGES.values()
    folder = Path() if at_root else Path("docs", page.file.src_uri).parent

    def from_root(link: str) -> str:
        return Path(os.path.normpath(folder / link)).as_posix()

    def link(match: re.Match) -> str:
        text, path, anchor = match["text"], from_root(match["path"]), match["anchor"] or ""
        if path in PAGES:
            return f"[{text}]({PAGES[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        if (ROOT / path).exists():
            return f"{text} (`{path}`)"
        return match[0]  # left for mkdocs to report

    def image(match: re.Match) -> str:
        return f"![{match['text']}]({from_root(match['path']).removeprefix('docs/')})"

    return _IMAGE.sub(image, _LINK.sub(link, markdown))
