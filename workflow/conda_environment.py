"""Print environment.yml: the direct dependencies in the versions of requirements.lock; `make lock` calls this."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
HEADER = "# For conda and mamba: conda env create -f environment.yml. Made by `make lock` from requirements.lock.\n"


def locked_versions(lock: str) -> dict[str, str]:
    """Name -> version of every package in the text of a requirements.lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, flags=re.MULTILINE))


def direct_dependencies(project: dict) -> list[str]:
    """Names of the packages that pyproject.toml's [project] table requires, extras included."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return sorted({re.match(r"[A-Za-z0-9._-]+", requirement)[0] for group in groups for requirement in group})


def environment() -> dict:
    """The content of environment.yml."""
    versions = locked_versions((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [f"{name}=={versions[name]}" for name in direct_dependencies(project)]
    return {
        "name": project["name"],
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": ["python=3.11", "make", "pip", {"pip": [*pins, "--editable ."]}],
    }


if __name__ == "__main__":
    print(HEADER + yaml.safe_dump(environment(), sort_keys=False), end="")
