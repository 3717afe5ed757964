"""The check of the built site's links: what it finds, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "check_links.py"


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("other/b.html", False),
        ("other/b.html#place%20two", False),
        ("#here", False),
        ("a%20file.txt?x=1", False),
        ("https://example.org/nothing", False),
        ("//example.org/nothing", False),
        ("mailto:x@example.org", False),
        ("other/b.html#no-place", True),
        ("#nowhere", True),
        ("c.html", True),
        ("other", True),  # a folder is no page
    ],
)
def test_links(link: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "a file.txt").write_text("x")
    (tmp_path / "other" / "b.html").write_text('<p id="place two"><a href="../a.html#here">back</a>')
    (tmp_path / "a.html").write_text(f'<h1 id="here">A</h1><a href="{link}">x</a>')
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == found and (f"a.html: {link}" in lines) == found
    assert lines[-1] == f"{1 if '//' in link or ':' in link else 2} links checked, {int(found)} broken"


def test_an_empty_site_is_no_success(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True).returncode == 1
