"""What importing a module loads: every large package costs every command, worker and test some of a second."""

import json
import subprocess
import sys
from pathlib import Path

import zodi

LARGE = {
    "torch", "torchvision", "torchmetrics", "diffusers", "transformers", "timm", "segmentation_models_pytorch",
    "kornia", "pandas", "scipy", "sklearn", "matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "tensorflow",
    "jax", "cv2",
}  # fmt: skip
# Modules in the order of their import, and what is loaded after each: at most this.
NOTHING: set[str] = set()
SEGMENTATION = {"torch", "torchvision", "timm", "segmentation_models_pytorch"}
TRAINING = SEGMENTATION | {"pandas"}
# torchvision and scipy: diffusers and transformers import them.
DIFFUSION = {"torch", "torchvision", "diffusers", "transformers", "scipy"}
CHAINS = [
    {
        **dict.fromkeys(
            ["zodi", "zodi.domains", "zodi.rows", "zodi.labels", "zodi.datasets", "zodi.__main__"], NOTHING
        ),
        **dict.fromkeys(["zodi.segmentation", "zodi.evaluation"], SEGMENTATION),
        **dict.fromkeys(["zodi.adaptation", "zodi.experiment"], TRAINING),
    },
    {
        **dict.fromkeys(["zodi.diffusion", "zodi.sampling", "zodi.transfer", "zodi.transfer_folder"], DIFFUSION),
        "zodi.estimation": DIFFUSION | TRAINING,
    },
]
LIMIT_S = 0.5
CODE = """
import importlib, json, sys, time
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = (time.process_time(), sorted({module.partition(".")[0] for module in sys.modules}))
print(json.dumps(found))
"""


def imported(modules: list[str]) -> dict[str, tuple[float, set[str]]]:
    """CPU seconds since the start of a process, and the large packages in it, after the import of each module."""
    command = [sys.executable, "-c", CODE, *modules]
    folder = Path(zodi.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return {name: (seconds, LARGE & {*names}) for name, (seconds, names) in json.loads(result.stdout).items()}


def test_modules_load_what_they_need_and_no_more():
    for chain in CHAINS:
        found = imported(list(chain))
        more = {name: sorted(found[name][1] - allowed) for name, allowed in chain.items() if found[name][1] - allowed}
        assert more == {}, "imported without need, or missing in the table"
        # A table that allows what nobody loads would notice nothing.
        *_, last = chain
        assert found[last][1] == chain[last]


def test_the_package_itself_is_there_at_once():
    seconds, names = imported(["zodi"])["zodi"]
    assert seconds < LIMIT_S and names == set()
