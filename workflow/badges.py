"""Write the repository's address and version into every badge and Colab cell; they are defined only in pyproject.toml.

make badges                    after a new version
make badges REPO=owner/name    after a move, or in a fork
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

from zodi.support.files import atomic_path

ROOT = Path(__file__).parent.parent
SLUG = r"[\w.-]+/[\w.-]+"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def address(root: Path = ROOT) -> tuple[str, str]:
    """("owner/name", tag of the version), from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/"), f"v{project['version']}"


def badge(name: str, root: Path = ROOT) -> str:
    """Link target of a notebook's badge."""
    slug, tag = address(root)
    return f"https://colab.research.google.com/github/{slug}/blob/{tag}/notebooks/{name}.ipynb"


def bootstrap(root: Path = ROOT) -> str:
    """The cell that fetches the course on Colab, as it is in a notebook's text twin."""
    slug, tag = address(root)
    return f"""import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("../pyproject.toml").exists():
    # !git clone -q --depth 1 --branch {tag} https://github.com/{slug}
    # %cd -q {slug.split("/")[1]}/notebooks
    # %pip install -q "..[course]"
    print("Installed. If Colab asks for it, restart the runtime before you go on.")
"""


def rewrite(root: Path, repository: str = "") -> list[Path]:
    """Write the address into pyproject.toml, if a new one is given, and from there into everything that shows it.

    Args:
        root: the repository's folder.
        repository: "owner/name" on GitHub, or "" for the one in pyproject.toml.

    Returns:
        The files that have changed.

    Raises:
        ValueError: if the repository is not of the form owner/name.
    """
    if repository and not re.fullmatch(SLUG, repository):
        raise ValueError(f"found REPO={repository}; expected owner/name, as in https://github.com/owner/name")
    old, _ = address(root)
    changed = _replace(root / "pyproject.toml", {rf"(?<=github\.com/){re.escape(old)}\b": repository or old})
    slug, tag = address(root)
    patterns = {
        rf"(?<=colab\.research\.google\.com/github/){SLUG}/blob/[\w.-]+(?=/notebooks/)": f"{slug}/blob/{tag}",
        rf"--branch [\w.-]+ https://github\.com/{SLUG}": f"--branch {tag} https://github.com/{slug}",
        r"(?<=%cd -q )[\w.-]+(?=/notebooks)": slug.split("/")[1],
        rf"(?<=github\.com/){re.escape(old)}\b": slug,
        r"(?m)^version: .*$": f"version: {tag.removeprefix('v')}",
    }
    notebooks = sorted((root / "notebooks").glob("*.py")) + sorted((root / "notebooks").glob("*.ipynb"))
    for file in (root / "README.md", root / "CITATION.cff", *notebooks):
        changed += _replace(file, patterns)
    return changed


def _replace(file: Path, patterns: dict[str, str]) -> list[Path]:
    """Apply the replacements to a file, and return it if they changed anything."""
    text = old = file.read_text(encoding="utf-8")
    for pattern, replacement in patterns.items():
        text = re.sub(pattern, replacement, text)
    if text == old:
        return []
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [file]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", default="", metavar="OWNER/NAME")
    try:
        changed = rewrite(ROOT, parser.parse_args().repository)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"written: {file.relative_to(ROOT)}" for file in changed) or "every badge is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
