"""The documentation site is strict, has no dead link, and works in a browser without a network."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import artefacts, chromium, faults_of, serious_findings

ROOT = Path(__file__).parents[2]
# Of every kind of page one that is short: axe takes some seconds for a long one.
LOOKED_AT = (
    "index.html",
    "glossary.html",
    "reference/steering.html",
    "tutorials/00-quickstart.html",
)


class Links(HTMLParser):
    """What a page has anchors for, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.addresses = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values.get("id"), values.get("name")}
        self.addresses |= {values.get("href"), values.get("src")} - {None}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser, site):
    """Opens a page without a network, and gives the faults it reported."""
    contexts = {
        scheme: browser.new_context(
            offline=True, viewport={"width": 1280, "height": 900}, color_scheme=scheme
        )
        for scheme in ("light", "dark")
    }

    def open_page(name, scheme="light"):
        page = contexts[scheme].new_page()
        faults = faults_of(page)
        page.goto((site / name).as_uri())
        page.locator("h1").first.wait_for()
        return page, faults

    yield open_page
    for context in contexts.values():
        context.close()


def test_no_link_of_the_site_is_dead(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses are those of a server's root
            continue
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            found = target.is_file() and (
                target not in pages or not anchor or anchor in pages[target].anchors
            )
            if not found and not anchor.startswith("only-") and anchor != "__skip":
                dead.append((path.relative_to(site).as_posix(), address))
    assert len(pages) > 30
    assert dead == []


def test_the_site_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 40e6


def test_pages_open_without_a_fault_and_fetch_nothing(opened, site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    # Those of the reference are made alike.
    for name in sorted(name for name in names if name in LOOKED_AT or "reference" not in name):
        page, faults = opened(name)
        assert faults == [], name
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_axe_finds_nothing_serious_on_a_page(opened, name, scheme, tmp_path):
    page, _ = opened(name, scheme)
    page.screenshot(path=artefacts(tmp_path) / f"site-{Path(name).stem}-{scheme}.png")
    assert serious_findings(page) == []


def test_the_search_finds_a_function_from_the_file_system(opened):
    page, faults = opened("index.html")
    page.locator("[data-md-component=search-query]").fill("first_token_recovery")
    first = page.locator(".md-search-result__item a").first
    first.wait_for()
    assert "first_token_recovery" in page.locator(".md-search-result__list").text_content()
    assert faults == []


def test_a_picture_is_dark_on_a_dark_page(opened):
    page, _ = opened("results.html", "dark")
    page.locator("img[src*='which-evidence.dark.svg']").wait_for()
    assert not page.locator("img[src*='which-evidence.svg']").is_visible()
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
