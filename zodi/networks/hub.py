"""Where diffusion models come from: the package, a folder, or the hub, from which nothing is downloaded unasked."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from zodi.support.files import one_line

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
STABLE_DIFFUSION_SIZE = "about 4.3 GB"
CONTROLNET_SEG = "lllyasviel/control_v11p_sd15_seg"
CONTROLNET_SEG_SIZE = "about 1.4 GB"
MINI_FOLDER = Path(__file__).parents[1] / "weights" / "mini"
# The state of the repository that the code was written for; other repositories are used as they are today.
_REVISIONS = {STABLE_DIFFUSION: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"}
# Without the half-precision and pickled copies that are stored beside them.
_HUB_FILES = [
    "*.json",
    "*/*.json",
    "tokenizer/*",
    "diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    # Of the other families: more text encoders, and weights in several files.
    "tokenizer_[23]/*",
    "text_encoder_[23]/model.safetensors",
    "text_encoder_[23]/model-0*.safetensors",
    "transformer/diffusion_pytorch_model-0*.safetensors",
]
LORA_FILE = "pytorch_lora_weights.safetensors"


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
    of_variant = [f"{part}/*.{variant}*.safetensors" for part in ("unet", "transformer")] if variant else []
    files = [*_HUB_FILES, *of_variant]
    revision = _REVISIONS.get(repository)
    return Path(
        snapshot_download(repository, revision=revision, local_files_only=local_files_only, allow_patterns=files)
    )


def locate_lora(lora: str | Path, local_files_only: bool) -> Path:
    """The .safetensors file of low-rank weights on this machine, downloaded from the hub if that is allowed.

    Args:
        lora: a file, a folder with one (or with `LORA_FILE`), a hub id, or a hub id followed by the file's name.
        local_files_only: True = never download.

    Raises:
        FileNotFoundError: if it is not there, or a folder has several; says what to give.
    """
    path = Path(lora).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        chosen = [file for file in files if file.name == LORA_FILE] or files
        if len(chosen) != 1:
            names = [file.name for file in files]
            raise FileNotFoundError(f"{path}: found {names}, expected {LORA_FILE} or one .safetensors file; name one")
        return chosen[0]
    owner, _, rest = str(lora).partition("/")
    repository, _, file = rest.partition("/")
    if isinstance(lora, Path) or not (owner and repository) or owner.startswith((".", "~")):
        raise FileNotFoundError(
            f"{lora}: no such file or folder. Expected low-rank weights as .safetensors, their folder, or a hub id "
            "such as latent-consistency/lcm-lora-sdv1-5 or ByteDance/Hyper-SD/Hyper-SD15-8steps-lora.safetensors"
        )
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file or LORA_FILE, local_files_only=local_files_only))
    except OSError as error:
        raise FileNotFoundError(
            f"{lora!r} is not on this machine. Download it once with --download (in Python: local_files_only=False) "
            f"or copy the file to any place and give its path instead. Cause: {one_line(error)}"
        ) from error
