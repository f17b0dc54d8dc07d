"""The course's site, built once: complete, no broken link, nothing loaded from another host."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
HELP = sorted(path.stem for path in ROOT.glob("notebooks/*.md"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "zodi").with_suffix("").parts) for path in ROOT.glob("zodi/**/[!_]*.py")
)
PACKAGES = ("myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}, the extra `site`; `make setup`")


class Page(HTMLParser):
    """What the tests look at of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.language, self.ids, self.headings = None, set(), []
        self.links: list[str] = []  # targets of <a>
        self.loaded: list[str] = []  # what the browser fetches by itself
        self.images: list[dict[str, str | None]] = []
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "html":
            self.language = values.get("lang")
        elif re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        elif tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "link" and not {"index", "search", "next", "prev"} & set((values.get("rel") or "").split()):
            self.loaded.append(values["href"])
        elif tag == "img":
            self.images.append(values)
        self.loaded += [values[name] for name in ("src", "srcset", "poster", "data") if values.get(name)]


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, ROOT / "workflow" / "site" / "build.py", folder]
    return folder, subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(build) -> Path:
    return build[0]


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path: Page(path.read_text(encoding="utf-8")) for path in paths}


def is_remote(target: str) -> bool:
    return urlsplit(target).scheme in ("http", "https") or target.startswith("//")


def target_path(page: Path, target: str) -> Path:
    """The file that a relative link of a page leads to."""
    path = unquote(urlsplit(target).path)
    return (page.parent / path).resolve() if path else page


def test_build_has_no_warnings(build):
    assert (build[1].returncode, build[1].stderr) == (0, "")


def test_every_notebook_and_module_has_a_page(site):
    assert sorted(path.stem for path in (site / "notebooks").iterdir()) == sorted([*NOTEBOOKS, *HELP])
    assert sorted(path.stem for path in (site / "api").iterdir() if path.stem != "index") == MODULES


def test_sidebar_lists_every_page(site, pages):
    links = {target_path(site / "index.html", link) for link in pages[site / "index.html"].links}
    wanted = [site / "notebooks" / f"{name}.html" for name in (*NOTEBOOKS, *HELP)]
    wanted += [site / "api" / f"{name}.html" for name in MODULES]
    assert not set(wanted) - links


def test_links_and_anchors_exist(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            file, anchor = target_path(path, link), unquote(urlsplit(link).fragment)
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].ids):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_notebooks_link_to_each_other(site, pages):
    for name in NOTEBOOKS:
        source = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        links = pages[site / "notebooks" / f"{name}.html"].links
        assert {f"{linked}.html" for linked in re.findall(r"\]\((\w+)\.ipynb", source)} <= set(links)


def test_pages_say_which_version_they_are_of_and_where_they_were_executed(site, pages):
    what = rf"of zodi {re.escape(PROJECT['version'])}; its outputs were made with Python 3\.[\d.]+ and torch 2\.[\d.]+"
    for name in NOTEBOOKS:
        text = pages[site / "notebooks" / f"{name}.html"].text
        assert re.search(rf"{what} on \d+ cores of \w.+, (no graphics card|\w.+)\.", text), name


def test_what_is_no_page_is_linked_in_the_repository(site, pages):
    assert f"{REPOSITORY}/blob/v{PROJECT['version']}/LICENSE" in pages[site / "index.html"].links


def test_nothing_comes_from_another_host(site, pages):
    for path, page in pages.items():
        assert not [target for target in page.loaded if is_remote(target)], path
        local = [target for target in page.loaded if not target.startswith("data:")]
        assert not [target for target in local if not target_path(path, target).is_file()], path
    styles = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    styles |= {path: "".join(re.findall(r"<style.*?</style>", page.text, re.DOTALL)) for path, page in pages.items()}
    remote = re.compile(r"""(url\(|@import)\s*["']?\s*(https?:)?//""")
    assert styles and not [path for path, text in styles.items() if remote.search(text)]


def test_badges_are_text(site, pages):
    for name in NOTEBOOKS:
        page = pages[site / "notebooks" / f"{name}.html"]
        assert re.search(rf'href="[^"]*colab[^"]*/{name}\.ipynb">Open in Colab</a>', page.text), name


def test_images_have_alternative_texts(pages):
    images = [(path, image) for path, page in pages.items() for image in page.images]
    assert len(images) > len(NOTEBOOKS)
    # Without one, Sphinx writes the name of the file.
    assert not [
        (path.name, image) for path, image in images if len(image.get("alt") or "") < 5 or image["alt"] in image["src"]
    ]


def test_headings_are_in_order_and_the_language_is_said(pages):
    for path, page in pages.items():
        assert page.language == "en", path
        assert page.headings[0] == 1 and page.headings.count(1) == 1, path
        steps = zip(page.headings, page.headings[1:], strict=False)
        assert all(below - above <= 1 for above, below in steps), path


def test_solutions_are_folded_and_widgets_leave_no_trace(site, pages):
    for name in NOTEBOOKS:
        source = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        text = pages[site / "notebooks" / f"{name}.html"].text
        assert text.count("<details><summary>Solution</summary>") == source.count("<summary>Solution")
        assert "```" not in text and "jupyter.widget" not in text and "Box(children=" not in text


def test_search_and_maths_are_there(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert HELP and all(f'"notebooks/{name}"' in index for name in (*NOTEBOOKS, *HELP))
    # What the pages explain is found by its word.
    assert all(f'"{word}"' in index or f"{word}:" in index for word in ("glossari", "regret", "syllabus"))
    assert (site / "search.html").is_file() and (site / "_static" / "mathjax" / "tex-chtml.js").is_file()
