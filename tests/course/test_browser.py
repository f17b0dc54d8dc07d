"""The course in a real browser: JupyterLab and the static site in a headless Chromium. `make test-browser` runs it.

It looks for Chromium, installs it where it is missing and may be installed, and is skipped with a reason otherwise.
Screenshots for a person to look at go to `results/browser`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prepare_notebooks
import pytest
import yaml
from badges import BADGE

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
SCREENSHOTS = ROOT / "results" / "browser"
WIDTHS = {"laptop": (1280, 900), "phone": (390, 844)}
# Notebook -> a control of its explorer, and what to do with it.
EXPLORERS = {
    "03_layout_to_image": (".noUi-handle", lambda control: control.press("ArrowRight")),
    "06_performance_estimation": (".widget-toggle-buttons button:not(.mod-active)", lambda control: control.click()),
    "07_published_tables": (".widget-dropdown select", lambda control: control.select_option(index=1)),
}
EMPTY_BADGE = "<svg xmlns='http://www.w3.org/2000/svg' width='117' height='20'/>"
# What JupyterLab itself writes to the console; none of it is ours.
NOISE = ("favicon", "service-worker", "Failed to fetch", "jupyterlab_pygments", "net::ERR_ABORTED")

pytestmark = pytest.mark.skipif(
    os.environ.get("ZODI_TEST_BROWSER") != "1", reason="needs a browser; run `make test-browser`"
)


def chromium() -> str:
    """A Chromium's path, installed if need be, or a skip that says why there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no chromium on this machine, and installing it takes root and apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            pytest.skip(f"chromium cannot be installed: {result.stderr.strip()[-200:]}")
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page that remembers what went wrong on it, in `page.problems`."""
    width, height = WIDTHS["laptop"]
    context = browser.new_context(viewport={"width": width, "height": height})

    def outside(route) -> None:
        """Nothing but the badge may be asked of the internet, and that is answered here."""
        if route.request.url == BADGE:
            route.fulfill(content_type="image/svg+xml", body=EMPTY_BADGE)
        else:
            opened.problems.append(f"outside: {route.request.url}")
            route.abort()

    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), outside)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(f"error: {error}"))
    opened.on(
        "console",
        lambda message: opened.problems.append(f"console: {message.text}") if message.type == "error" else None,
    )
    yield opened
    context.close()


def free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


# ---------------------------------------------------------------- JupyterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """Address of a JupyterLab on copies: `notebooks/` as committed, `toy/` with toy parameters."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "jupytext.toml", folder)
    parameters = yaml.safe_load((ROOT / "tests" / "course" / "smoke_parameters.yaml").read_text(encoding="utf-8"))
    (folder / "toy").mkdir()
    for name in EXPLORERS:
        # Their records are one folder nearer here than in the copies of `make test`.
        values = {
            key: value.replace("../../../", "../") if isinstance(value, str) else value
            for key, value in parameters[name].items()
        }
        notebook = ROOT / "notebooks" / f"{name}.ipynb"
        prepare_notebooks.prepare(notebook, folder / "toy" / notebook.name, values, solve=False)
    prepare_notebooks.write_miniature(folder / "data", train=4, test=2, domains=("night", "snow"))
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", "--LabApp.news_url=None",
    ]  # fmt: skip
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def open_notebook(page, lab: str, path: str) -> None:
    """Open a notebook in JupyterLab and wait until its cells are there."""
    page.goto(f"{lab}/lab/tree/{path}?reset")
    page.wait_for_selector(".jp-Notebook .jp-MarkdownOutput h1")
    page.wait_for_function("window.jupyterapp.shell.currentWidget?.context?.isReady")


def close_kernels(lab: str) -> None:
    """Shut down what the opened notebooks have started."""
    with urllib.request.urlopen(f"{lab}/api/sessions") as answer:
        sessions = json.load(answer)
    for session in sessions:
        urllib.request.urlopen(urllib.request.Request(f"{lab}/api/sessions/{session['id']}", method="DELETE")).close()


def ours(problems: list[str]) -> list[str]:
    return [problem for problem in problems if not any(noise in problem for noise in NOISE)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_jupyterlab_opens_the_notebook(page, lab, name):
    try:
        open_notebook(page, lab, f"notebooks/{name}.ipynb")
        title = page.locator(".jp-Notebook h1").first.inner_text()
        assert title.split(" ")[0].strip("¶") == name.split("_")[0]
        assert page.locator(".jp-Dialog").count() == 0
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert ours(page.problems) == []
        page.screenshot(path=SCREENSHOTS / f"lab_{name}.png")
    finally:
        close_kernels(lab)


@pytest.mark.parametrize("name", sorted(EXPLORERS))
def test_all_cells_run_and_the_picture_follows_a_control(page, lab, name):
    selector, move = EXPLORERS[name]
    try:
        open_notebook(page, lab, f"toy/{name}.ipynb")
        page.wait_for_function(
            "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
        )
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        errors = page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.flatMap(
                 cell => (cell.toJSON().outputs ?? []).filter(output => output.output_type === 'error'))"""
        )
        assert errors == []
        page.evaluate(
            """() => { const notebook = window.jupyterapp.shell.currentWidget.content;
                 const index = notebook.widgets.findIndex(
                   cell => cell.model.sharedModel.source.includes('explore.Explorer('));
                 notebook.activeCellIndex = index; return notebook.scrollToItem(index, 'start'); }"""
        )
        picture = page.locator("img.widget-image, .widget-image img").last
        picture.wait_for()
        before = picture.get_attribute("src")
        control = page.locator(selector).first
        control.scroll_into_view_if_needed()
        start = time.monotonic()
        move(control)
        page.wait_for_function("([image, old]) => image.src !== old", arg=[picture.element_handle(), before])
        seconds = time.monotonic() - start
        print(f"{name}: the picture followed after {seconds:.1f} s")
        assert seconds < 2
        assert picture.evaluate("image => image.naturalWidth") > 0
        assert ours(page.problems) == []
        page.screenshot(path=SCREENSHOTS / f"explorer_{name}.png")
    finally:
        close_kernels(lab)


# ---------------------------------------------------------------- the static site


class Quiet(SimpleHTTPRequestHandler):
    """A file server that does not write a line for every request."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, list[str]]]:
    """Address of the site, built for the test, and the paths of its pages."""
    pytest.importorskip("myst_nb", reason="the extra `site` is not installed")
    folder = tmp_path_factory.mktemp("site") / "site"
    subprocess.run([sys.executable, "workflow/site/build.py", str(folder)], cwd=ROOT, check=True, timeout=600)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (
        f"http://127.0.0.1:{server.server_port}",
        sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html")),
    )
    server.shutdown()
    server.server_close()


def test_every_page_of_the_site_is_whole(page, site):
    address, pages = site
    page.on("requestfailed", lambda request: page.problems.append(f"failed: {request.url}"))
    page.on(
        "response",
        lambda answer: page.problems.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None,
    )
    page.on(
        "request",
        lambda request: (
            page.problems.append(f"outside: {request.url}")
            if request.url.startswith("http") and not request.url.startswith(address)
            else None
        ),
    )
    seen, waiting = set(), ["index.html"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        page.goto(f"{address}/{path}", wait_until="load")
        links = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(link => link.href.split('#')[0])")
        waiting += [
            link.removeprefix(f"{address}/").split("?")[0]
            for link in links
            if link.startswith(f"{address}/") and ".html" in link
        ]
        missing = page.evaluate(
            """async () => { const images = [...document.images];
                 for (const image of images) { image.loading = 'eager'; }
                 await Promise.all(images.map(image => image.decode().catch(() => null)));
                 return images.filter(image => !image.naturalWidth).map(image => image.src); }"""
        )
        assert missing == [], path
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container", state="attached")
            assert page.locator("mjx-merror").count() == 0, path
    assert page.problems == []
    assert {name for name in NOTEBOOKS if not any(name in path for path in seen)} == set()
    unlinked = {"search.html", "genindex.html", "_modules/index.html"}
    assert {path for path in pages if not path.startswith("_static/")} <= seen | unlinked


def test_search_finds_a_chapter(page, site):
    address, _ = site
    page.goto(f"{address}/search.html?q=realignment")
    page.wait_for_selector("#search-results li")
    assert "03_layout_to_image" in page.locator("#search-results").inner_html()


@pytest.mark.parametrize("width", sorted(WIDTHS))
def test_pages_fit_the_screen(browser, site, width):
    address, pages = site
    context = browser.new_context(viewport=dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    page = context.new_page()
    chosen = [path for path in pages if path == "index.html" or any(name in path for name in NOTEBOOKS)]
    for path in chosen:
        page.goto(f"{address}/{path}")
        page.screenshot(path=SCREENSHOTS / f"site_{width}_{Path(path).stem}.png")
        assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 1, path
    assert len(chosen) > len(NOTEBOOKS)
    context.close()
