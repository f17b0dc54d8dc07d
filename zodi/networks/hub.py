"""Where diffusion models come from: the package, a folder, or the hub, from which nothing is downloaded unasked."""

from pathlib import Path

from huggingface_hub import snapshot_download

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
STABLE_DIFFUSION_SIZE = "about 4.3 GB"
CONTROLNET_SEG = "lllyasviel/control_v11p_sd15_seg"
CONTROLNET_SEG_SIZE = "about 1.4 GB"
MINI_FOLDER = Path(__file__).parents[1] / "weights" / "mini"
# The state of the repository that the code was written for; other repositories are taken as they are today.
_REVISIONS = {STABLE_DIFFUSION: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"}
# Without the half-precision and pickled copies that lie beside them.
_HUB_FILES = [
    "*.json",
    "*/*.json",
    "tokenizer/*",
    "diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


def locate(
    model: str | Path, paper_id: str, paper_size: str, local_files_only: bool, variant: str | None = None
) -> Path:
    """The folder of a model on this machine, downloaded from the hub if it is a hub id and that is allowed.

    Args:
        model: "mini", a folder, or a hub id.
        paper_id, paper_size: what the paper uses, for the message.
        local_files_only: True = never download.
        variant: of the UNet's weights, see `zodi.diffusion.load`.

    Raises:
        FileNotFoundError: if it is not there; says what to get, how large it is and where to put it.
    """
    if str(model) == "mini":
        if not (MINI_FOLDER / "model_index.json").exists():
            raise FileNotFoundError(
                f"{MINI_FOLDER}: the miniature's weights are not there. They come with the package: install it again, "
                "or train them with `python -m zodi.miniature pretrain`."
            )
        return MINI_FOLDER
    if Path(model).is_dir():
        return Path(model)
    if isinstance(model, Path) or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{model}: no such folder. Expected 'mini', a folder in diffusers' format (unet/, vae/, text_encoder/, "
            f"tokenizer/, scheduler/) or a hub id such as {paper_id}."
        )
    try:
        return snapshot(model, local_files_only, variant)
    except OSError as error:
        raise FileNotFoundError(
            f"{model!r} is not on this machine. The paper uses {paper_id} ({paper_size}). Download it once with "
            "--download (in Python: local_files_only=False), which puts it into the hub's cache (HF_HOME), or copy its "
            f"folder to any place and give that path instead. Cause: {error}"
        ) from error


def snapshot(repository: str, local_files_only: bool = True, variant: str | None = None) -> Path:
    """The folder of a repository of the hub with the files that `load` reads, at the revision that it reads.

    Raises:
        OSError: if it is not on this machine and may not, or cannot, be downloaded.
    """
    files = [*_HUB_FILES, *([f"unet/*.{variant}.safetensors"] if variant else [])]
    revision = _REVISIONS.get(repository)
    return Path(
        snapshot_download(repository, revision=revision, local_files_only=local_files_only, allow_patterns=files)
    )
