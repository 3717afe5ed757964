"""The built site (`make site`) as a visitor meets it: the front page, a notebook, the search."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from lab import HEIGHT, NOTEBOOKS, PATIENCE, ROOT, SCREENSHOTS, WIDTHS
from playwright.sync_api import Browser, expect

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    """The site on a server of this test's own; search needs one."""
    folder = ROOT / "site" / "html"
    assert (folder / "index.html").is_file(), "run make site"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_visit(address: str, browser: Browser, scheme: str) -> None:
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": HEIGHT}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE * 1000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: said.type == "error" and wrong.append(f"{said.text} ({said.location['url']})"))
    page.on("request", lambda request: request.url.startswith(address) or wrong.append(f"asks for {request.url}"))
    page.goto(address, wait_until="load")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        page.locator("#the-notebooks").evaluate("section => section.scrollIntoView()")
        page.screenshot(path=SCREENSHOTS / f"site-{width}-{scheme}.png")
        overflow = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} pixels too wide at {width}"
    pictures = page.locator("#the-notebooks img")
    shown = pictures.evaluate_all("all => all.filter(one => one.naturalWidth && one.clientWidth > 150).length")
    assert shown == pictures.count() > 0
    page.locator(f"#the-notebooks a[href='notebooks/{NAMES[0]}.html']").click()
    expect(page.locator("h1").first).to_contain_text(NAMES[0].partition("_")[0])
    page.goto(f"{address}/search.html?q=leakage", wait_until="load")
    for name in ("01_customer_service_qlora", "02_legal_full_finetuning"):
        expect(page.locator(f"#search-results a[href*='{name}']").first).to_be_visible()
    page.close()
    # The theme's own word at a first visit; and there is no icon for the browser's tab.
    assert [text for text in wrong if "invalid theme mode" not in text and "/favicon.ico)" not in text] == []
