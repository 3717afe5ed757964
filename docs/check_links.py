"""Every link within a built site must lead to a file, and to a place in it, that is there.

    python docs/check_links.py FOLDER

Links to other sites are not followed. The last line says how many were checked; exit code 1 if one is broken.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places that a page has, and where its links, pictures and scripts lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name"):
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken(folder: Path) -> tuple[int, list[str]]:
    """How many links within the folder were checked, and `page: link` for each that leads nowhere."""
    folder = folder.resolve()
    found = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]  # a theme's templates
    pages = {path: Page(path) for path in found}
    count, wrong = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            lost = place and target in pages and place not in pages[target].places
            if not target.is_file() or lost:
                wrong.append(f"{path.relative_to(folder)}: {link}")
    return count, wrong


if __name__ == "__main__":
    checked, found = broken(Path(sys.argv[1]))
    print(*found, f"{checked} links checked, {len(found)} broken", sep="\n")
    sys.exit(bool(found) or not checked)
