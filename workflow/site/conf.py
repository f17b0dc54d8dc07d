"""Sphinx's settings for the course's site; `build.py` collects the sources and calls Sphinx.

The site needs no network, either to be built or to be read: images from other hosts become text, widgets are left out,
MathJax comes with the pages.
"""

import json
import tomllib
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOGGER = logging.getLogger(__name__)
REPOSITORY = PROJECT["urls"]["Repository"]
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = ("image/png", "image/jpeg", "image/svg+xml", "text/html", "text/markdown")
# Alternative texts of the figures, by the hash of their bytes, which MyST-NB uses as a figure's file name.
ALT_TEXTS: dict[str, str] = {}

project = PROJECT["name"]
version = release = PROJECT["version"]
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["README.md"]  # index.md includes it
# A name in single backticks becomes a link if there is such an object, and code if not.
default_role = "py:obj"

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"  # captions have maths
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
mathjax3_config = {"chtml": {"displayAlign": "left"}}

add_module_names = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
# A name that a module re-exports is explained where it is defined, and its source links there.
viewcode_follow_imported_members = False
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

html_title = "ZoDi course"
html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "navbar_persistent": [],  # the sidebar has the search
    "footer_content_items": ["extra-footer.html"],
    "extra_footer": f"{project} {version}, {PROJECT['license']} licence",
}
html_context = {"description": PROJECT["description"], "default_mode": "auto"}
html_domain_indices = False  # api/index is the list of modules
html_static_path = ["custom.css"]
html_css_files = ["custom.css"]
templates_path = ["templates"]


def prepare_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fold the cell for Colab, note the figures' alternative texts, say what a widget needs and what the page is of."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "google.colab" in "".join(cell["source"]):
            cell["metadata"].setdefault("tags", []).append("hide-cell")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind, details in output.get("metadata", {}).items():
                if kind.startswith("image/") and details.get("alt"):
                    content = "".join(data[kind])
                    is_svg = kind == "image/svg+xml"
                    picture = "\n".join(content.splitlines()).encode() if is_svg else b64decode(content)
                    ALT_TEXTS[sha256(picture).hexdigest()] = details["alt"]
            if data.pop(WIDGET, None) and not any(kind in data for kind in SHOWN):
                output["data"] = {"text/markdown": "*An interactive control, which works when the notebook runs.*"}
    python = notebook["metadata"].get("language_info", {}).get("version")
    if python:
        text = f"*This page is of {project} {version}; its outputs were made with Python {python}{_where(notebook)}.*"
        notebook["cells"].append({"cell_type": "markdown", "id": "version", "metadata": {}, "source": text})
    source[0] = json.dumps(notebook)


def _where(notebook: dict) -> str:
    """On what a notebook was executed, as `workflow/execute_notebooks.py` noted it; "" if it did not."""
    found = notebook["metadata"].get("executed_on")
    if found is None:
        return ""
    card = found["gpu"] or "no graphics card"
    return f" and torch {found['torch']} on {found['cpus']} cores of {found['processor']}, {card}"


class ReplaceRemoteImages(SphinxTransform):
    """An image from another host, such as Colab's badge, becomes its text: no page loads anything from outside."""

    default_priority = 400

    def apply(self) -> None:
        """Change the document."""
        for image in list(self.document.findall(nodes.image)):
            if "://" in image["uri"]:
                text = "Open in Colab" if "colab" in image["uri"] else image.get("alt", "")
                image.replace_self(nodes.Text(text))


class CompleteFigures(SphinxPostTransform):
    """A notebook's figure gets its alternative text, which MyST-NB drops, and the caption below becomes its own."""

    default_priority = 5  # MyST-NB chooses between the kinds of an output at 4

    def run(self) -> None:
        """Change the document."""
        outputs = [node for node in self.document.findall(nodes.container) if "cell_output" in node["classes"]]
        images = [image for output in outputs for image in output.findall(nodes.image)]
        for number, image in enumerate(images, start=1):
            image["alt"] = ALT_TEXTS.get(Path(image["uri"]).stem, "")
            if not image["alt"]:
                LOGGER.warning("a figure without an alternative text; `plots.show` gives it one", location=image)
            below = image.next_node(descend=False, siblings=True)
            figure = nodes.figure("", ids=[f"figure-{number}"])
            image.replace_self(figure)
            figure += image
            if isinstance(below, nodes.paragraph) and below.astext().startswith("Figure."):
                below.parent.remove(below)
                figure += nodes.caption("", "", *below.children)


class LinkRepository(SphinxTransform):
    """A relative link to a file that is not a page leads to the file in the repository, at this version."""

    default_priority = 400

    def apply(self) -> None:
        """Change the document."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link["reftype"] != "myst" or link["refdomain"] == "doc" or link["reftarget"].startswith("#"):
                continue
            target, _, anchor = link["reftarget"].partition("#")
            path = (ROOT / link["refdoc"]).parent.joinpath(target).resolve()
            if path.exists() and path.is_relative_to(ROOT):
                kind = "tree" if path.is_dir() else "blob"
                address = f"{REPOSITORY}/{kind}/v{version}/{path.relative_to(ROOT).as_posix()}"
                address += f"#{anchor}" if anchor else ""
                link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare_notebook)
    app.add_transform(ReplaceRemoteImages)
    app.add_post_transform(CompleteFigures)
    app.add_transform(LinkRepository)
