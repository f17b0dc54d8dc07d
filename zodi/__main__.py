"""Command line of the stages: `python -m zodi COMMAND --help`.

Exit codes: 0 all done, 1 some parts could not be done (each is named), 2 the input was wrong and nothing was done.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from zodi.domains import DOMAINS, SOURCE
from zodi.generators.additions import Additions
from zodi.labels import LABEL_SETS, get_label_set
from zodi.support.options import (
    Command,
    add_fields,
    device_option,
    dtype_option,
    folder,
    given_fields,
    print_errors,
    run_command,
)

# Modules that load torch are imported by the commands that need them, so that the list of commands appears at once.

SHORT = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
LABEL_SET_TEXT = f"what label values mean: {', '.join(LABEL_SETS)}, or a mapping file.yaml (default: cityscapes)"
NETWORK_TEXT = "folder `network/` that `adapt` wrote, or a checkpoint of transformers: its folder or hf:HUB_ID"
MODEL_TEXT = "mini (default), a folder in diffusers' format, or a hub id"
SECOND = ("second_control", "second_weight", "second_kind")
# Parameters up to which `info` loads a model to tell it apart from others: Stable Diffusion 1.5 with its ControlNet.
LARGEST_LOADED = 1_500_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command("python -m zodi", "ZoDi, stage by stage.", COMMANDS, arguments)


def _model_options(sub: argparse.ArgumentParser, second: bool = True) -> None:
    """Which diffusion model, and what is added to it; see `_model_settings`."""
    sub.add_argument("--model", default="mini", help=MODEL_TEXT)
    add_fields(sub, Additions, leave_out=() if second else SECOND, show_defaults=False)
    # An option that is not given is recorded with its default.
    sub.set_defaults(**{field.name: field.default for field in fields(Additions) if second or field.name not in SECOND})
    sub.add_argument("--download", action="store_true", help="allow a hub model to be downloaded")


def _model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `zodi.diffusion.load` takes from `_model_options`, except the model."""
    return given_fields(options, Additions) | {"local_files_only": not options.download}


# ---------------------------------------------------------------- transfer


def _transfer_options(sub: argparse.ArgumentParser) -> None:
    from zodi.support.pictures import MAX_PIXELS
    from zodi.transfer import TransferConfig

    sub.add_argument("--images", type=folder, required=True, help="folder of images of any size; subfolders are kept")
    sub.add_argument("--labels", type=folder, help="folder of label maps (8-bit PNG) named like the images")
    sub.add_argument("--label-set", default="cityscapes", help=LABEL_SET_TEXT)
    sub.add_argument("--out", type=folder, required=True, help="folder of the result; the same settings continue there")
    sub.add_argument("--domain", choices=DOMAINS, help="use the prompt and strength of a domain of the paper")
    _model_options(sub)
    sub.add_argument("--second-maps", type=folder, help="folder of maps for --second-control, named like the images")
    device_option(sub)
    dtype_option(sub)
    sub.add_argument("--compile", action="store_true", help="torch.compile the networks; worth it for many images")
    sub.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    sub.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="pixels of the largest image that is read")
    sub.add_argument("--limit", type=int, help="do only the first so many images")
    sub.add_argument("--shard", type=_shard, metavar="I/N", help="do every N-th image from the I-th on (0 .. N-1)")
    # Defaults are the checkpoint's and the domain's.
    settings = sub.add_argument_group("settings of the transfer")
    add_fields(settings, TransferConfig, leave_out=("domain",), short=SHORT, show_defaults=False)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _transfer(options: argparse.Namespace) -> int:
    from zodi import diffusion, transfer
    from zodi.support import runs
    from zodi.transfer_folder import transfer_folder

    device, dtype = runs.check_device(options.device), runs.check_dtype(options.dtype, options.device)
    changes = given_fields(options, transfer.TransferConfig, leave_out=("domain",))
    target = options.domain or changes.pop("prompt", None)
    if target is None:
        raise ValueError("give --domain or --prompt")
    model, defaults, where = None, None, None
    if changes.get("method") not in transfer.WITHOUT_MODEL:
        where = runs.announce(device, dtype)
        model = diffusion.load(
            options.model, device=device, dtype=dtype, compile=options.compile, **_model_settings(options)
        )
        defaults = model.defaults
    config = transfer.prompt_config(target, defaults, **changes)
    runs.print_settings(config)
    _warn(transfer.strength_warning(config, defaults) if defaults else "")
    is_whole = options.limit is None and options.shard is None
    if is_whole:
        runs.remove_metrics(options.out)
    report = transfer_folder(
        model,
        options.images,
        options.labels,
        options.out,
        config,
        get_label_set(options.label_set),
        options.batch_size,
        options.shard,
        options.limit,
        max_pixels=options.max_pixels,
        second_maps=options.second_maps,
    )
    metrics = {"domain": options.domain, "method": changes.get("method", config.method), "report": report}
    if report.ok and is_whole:
        runs.save_metrics(options.out, "transfer", config, metrics, report.seconds, where)
    print(f"{report.done} done, {report.skipped} were there already, {len(report.errors)} failed; {report.seconds} s")
    print(f"images: {options.out / 'images'}")
    if report.stale:
        print(f"moved to {options.out / 'stale'}: {len(report.stale)} images whose source is gone or has changed")
    print_errors(report.errors.values(), options.out / "report.json")
    return 0 if report.ok else 1


# ---------------------------------------------------------------- import


def _import_options(sub: argparse.ArgumentParser) -> None:
    from zodi.support.pictures import MAX_PIXELS
    from zodi.tools.importing import ImportConfig

    sub.add_argument("--images", type=folder, required=True, help="images that another program made")
    sub.add_argument("--source", type=folder, required=True, help="the source images that it made them from")
    sub.add_argument("--labels", type=folder, required=True, help="label maps of the source images")
    sub.add_argument("--label-set", default="cityscapes", help=LABEL_SET_TEXT)
    sub.add_argument("--out", type=folder, required=True, help="folder of the result, for `adapt --synth`")
    sub.add_argument("--reference", type=folder, help="network trained on the source: checks if labels still hold")
    sub.add_argument("--mask", action="store_true", help="make pixels that lost their label void; needs --reference")
    device_option(sub)
    sub.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="pixels of the largest image that is read")
    add_fields(sub, ImportConfig)


def _import(options: argparse.Namespace) -> int:
    from zodi import segmentation
    from zodi.support import runs
    from zodi.tools import importing

    if options.mask and options.reference is None:
        raise ValueError("--mask needs --reference, a network that was trained on the source")
    config = importing.ImportConfig(**given_fields(options, importing.ImportConfig))
    device = runs.check_device(options.device)
    reference = segmentation.load_network(options.reference).to(device) if options.reference else None
    label_set, start = get_label_set(options.label_set), time.monotonic()
    runs.remove_metrics(options.out)
    places = (options.images, options.source, options.labels, options.out)
    report = importing.import_folder(*places, label_set, config, max_pixels=options.max_pixels)
    print(
        f"{report.done} done ({report.resized} resized), {report.skipped} were there already, "
        f"{len(report.errors)} failed"
    )
    if report.unused:
        print(f"not used, because no source image has their name: {', '.join(report.unused)}")
    metrics = {"report": report}
    if reference is not None:
        found = importing.audit(options.out, options.source, options.labels, label_set, reference, options.mask)
        print(found.classes.round(1).to_string())
        print(found)
        metrics["audit"] = found.images.mean().to_dict()
    print_errors(report.errors.values(), options.out / "report.json")
    if report.ok:
        runs.save_metrics(options.out, "import", config, metrics, time.monotonic() - start)
    return 0 if report.ok else 1


# ---------------------------------------------------------------- adapt and evaluate


def _warn(sentence: str) -> None:
    if sentence:
        print(f"warning: {sentence}", file=sys.stderr)


def _adapt_options(sub: argparse.ArgumentParser) -> None:
    from zodi.adaptation import AdaptationConfig

    sub.add_argument("--data", type=folder, required=True, help="data set folder (dataset.json, train/, test/)")
    sub.add_argument("--variant", default="zodi", help="row of the tables (default: zodi)")
    sub.add_argument("--domain", choices=DOMAINS, default="", help="target domain; not for rows that serve all domains")
    sub.add_argument("--synth", type=folder, help="folder that `transfer` or `import` wrote for train/images")
    sub.add_argument("--reference", type=folder, help="folder of a network that finds the layout; for zodi_faithful")
    sub.add_argument("--tests", nargs="+", help="test domains (default: all in the data set)")
    sub.add_argument("--recipe", default="mini", help="settings of the training: mini (default), paper or transformer")
    device_option(sub)
    sub.add_argument("--workers", type=int, default=0, help="processes that read images (default: only this one)")
    sub.add_argument("--out", type=folder, required=True, help="folder of the run")
    # Defaults are the recipe's; the variant sets the weight of the similarity term and the augmentation.
    settings = sub.add_argument_group("settings of the training")
    add_fields(settings, AdaptationConfig, leave_out=("similarity_weight", "augmentation"), show_defaults=False)


def _adapt(options: argparse.Namespace) -> int:
    from zodi import adaptation, evaluation, experiment, segmentation
    from zodi.rows import get_row
    from zodi.support import runs
    from zodi.support.files import atomic_path

    start = time.monotonic()
    device = str(runs.check_device(options.device))
    where = runs.device_text(device)
    changes = given_fields(options, adaptation.AdaptationConfig)
    config = adaptation.recipe(options.recipe, options.variant, **changes)
    reference = segmentation.load_network(options.reference) if options.reference else None
    sets = experiment.training_sets(get_row(options.variant), options.data, options.domain, options.synth, reference)
    experiment.test_sets(options.data, options.tests)
    runs.remove_metrics(options.out)
    print(f"device {where}")
    trained = experiment.train_row(sets, config, options.out, progress=True, device=device, workers=options.workers)
    segmentation.save_network(trained.network, options.out / "network")
    with atomic_path(options.out / "history.csv") as temporary:
        trained.history.to_csv(temporary, index=False)
    scores = experiment.scores_by_domain(trained.network, options.data, options.tests, progress=True)
    _print_scores(scores)
    settings = {"data": options.data, "synth": options.synth, "config": config}
    metrics = trained.record | evaluation.by_domain(scores)
    print(f"metrics: {runs.save_metrics(options.out, 'adapt', settings, metrics, time.monotonic() - start, where)}")
    return 0


def _evaluate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--network", type=folder, required=True, help=NETWORK_TEXT)
    sub.add_argument("--data", type=folder, required=True, help="data set folder")
    sub.add_argument("--domains", nargs="+", help="test domains (default: all in the data set)")
    device_option(sub)
    sub.add_argument("--out", type=folder, help="folder for metrics.json")


def _evaluate(options: argparse.Namespace) -> int:
    from zodi import evaluation, experiment, segmentation
    from zodi.support import runs

    start = time.monotonic()
    device = runs.check_device(options.device)
    where = runs.announce(device)
    network = segmentation.load_network(options.network).to(device)
    experiment.test_sets(options.data, options.domains)
    if options.out is not None:
        runs.remove_metrics(options.out)
    scores = experiment.scores_by_domain(network, options.data, options.domains, progress=True)
    _print_scores(scores)
    if options.out is not None:
        settings = {"network": options.network, "data": options.data}
        metrics = evaluation.by_domain(scores)
        file = runs.save_metrics(options.out, "evaluate", settings, metrics, time.monotonic() - start, where)
        print(f"metrics: {file}")
    return 0


def _print_scores(scores: dict[str, dict]) -> None:
    for domain, score in scores.items():
        print(f"{domain:<10} mIoU {score['miou']:5.1f} %  ({score['images']} images)")


# ---------------------------------------------------------------- estimate


def _estimate_options(sub: argparse.ArgumentParser) -> None:
    from zodi.transfer import TransferConfig

    sub.add_argument("--network", type=folder, required=True, help=NETWORK_TEXT)
    sub.add_argument(
        "--against", type=folder, help="second network to compare with, for example the one in use (its folder)"
    )
    sub.add_argument("--images", type=folder, help="source images that it was not trained on")
    sub.add_argument("--labels", type=folder, required=True, help="folder of their label maps")
    sub.add_argument("--label-set", default="cityscapes", help=LABEL_SET_TEXT)
    sub.add_argument("--domain", help="target domain, or a prompt")
    sub.add_argument(
        "--generated",
        type=folder,
        nargs="+",
        help="images that `transfer` or `import` wrote, instead of --images and --domain",
    )
    _model_options(sub, second=False)
    device_option(sub)
    dtype_option(sub)
    sub.add_argument("--seeds", type=int, default=2, help="transfers per image (default: 2)")
    sub.add_argument("--reference", type=folder, help="folder of a network that finds the layout in good images")
    sub.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="redraw the images with the source's own prompt too, and abstain if that costs the network too much or "
        "the labels do not fit the images (default: yes, where images are transferred)",
    )
    sub.add_argument("--out", type=folder, required=True, help="folder of the generated images and of classes.csv")
    settings = sub.add_argument_group("settings of the transfer")
    add_fields(settings, TransferConfig, leave_out=("domain", "prompt", "seed"), short=SHORT, show_defaults=False)


def _estimate(options: argparse.Namespace) -> int:
    from zodi import diffusion, estimation, segmentation
    from zodi.support import runs
    from zodi.support.checks import check_network
    from zodi.support.files import atomic_path
    from zodi.transfer import TransferConfig, prompt_config, strength_warning

    start = time.monotonic()
    changes = given_fields(options, TransferConfig, leave_out=("domain",))
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: expected at least 1, one transfer per image")
    if bool(options.generated) == bool(options.images and options.domain):
        raise ValueError("give --images and --domain to transfer images, or --generated for existing ones")
    device, dtype = runs.check_device(options.device), runs.check_dtype(options.dtype, options.device)
    where = runs.announce(device, dtype)
    folders = (options.network, options.reference, options.against)
    networks = [folder and segmentation.load_network(folder).to(device) for folder in folders]
    label_set, error = get_label_set(options.label_set), None
    for network in filter(None, networks):
        check_network(network, label_set.names)
    if options.generated:
        generated = estimation.opened(options.generated, options.labels, label_set)
        runs.remove_metrics(options.out)
    else:
        model = diffusion.load(options.model, device=device, dtype=dtype, **_model_settings(options))
        error = estimation.known_error(model, options.domain, changes)
        _warn(strength_warning(prompt_config(options.domain, model.defaults, **changes), model.defaults))
        runs.remove_metrics(options.out)
        places, seeds = (options.images, options.labels, options.domain, options.out), range(options.seeds)
        generated = estimation.generate(model, *places, label_set, seeds, **changes)
    found = replace(estimation.estimate_on(generated, networks[0], networks[1]), error=error)
    if not options.generated:
        found = estimation.with_source(found, networks[0], *places[:2], label_set, generated[0].keys)
        if options.check:
            found = estimation.checked(found, networks[0], model, *places, label_set, **changes)
    print(found.classes.round(1).to_string())
    print(found)
    metrics = {"miou": found.miou, "low": found.low, "high": found.high, "kept": found.kept, "reliable": found.reliable}
    metrics |= {"interval": found.interval, "source": found.source, "redrawn": found.redrawn, "lost": found.lost}
    if networks[2] is not None:
        compared = replace(estimation.compare_on(generated, networks[0], networks[2]), error=error)
        print(f"{options.network} against {options.against}: {compared}")
        metrics["against"] = asdict(compared) | {"interval": compared.interval, "decided": compared.decided}
    with atomic_path(options.out / "classes.csv") as temporary:
        found.classes.to_csv(temporary, index_label="class", float_format="%.4f")
    settings = {name: value for name, value in vars(options).items() if name != "run"}
    # What "auto" stood for here.
    settings |= {"device": str(device), "dtype": runs.dtype_name(dtype)}
    runs.save_metrics(options.out, "estimate", settings, metrics, time.monotonic() - start, where)
    return 0 if found.reliable else 1


# ---------------------------------------------------------------- redraw


def _redraw_options(sub: argparse.ArgumentParser) -> None:
    from zodi.tools.redrawing import LAYOUTS
    from zodi.transfer import TransferConfig

    sub.add_argument("--network", type=folder, required=True, help=NETWORK_TEXT)
    sub.add_argument("--images", type=folder, required=True, help="target photographs; no labels are needed")
    sub.add_argument("--labels", type=folder, help="their label maps, to score the network before and after")
    sub.add_argument("--label-set", default="cityscapes", help=LABEL_SET_TEXT)
    sub.add_argument("--out", type=folder, required=True, help="folder of the result; the same settings continue there")
    sub.add_argument(
        "--layout", choices=LAYOUTS, default="predicted", help="by the network (predicted, default), or none"
    )
    sub.add_argument("--domain", default=SOURCE, help=f"the source's domain, or a prompt (default: {SOURCE})")
    _model_options(sub, second=False)
    device_option(sub)
    dtype_option(sub)
    settings = sub.add_argument_group("settings of the transfer")
    add_fields(settings, TransferConfig, leave_out=("domain", "prompt"), short=SHORT, show_defaults=False)


def _redraw(options: argparse.Namespace) -> int:
    from zodi import diffusion, evaluation, segmentation
    from zodi.datasets import FolderDataset
    from zodi.support import runs
    from zodi.tools import redrawing
    from zodi.transfer import TransferConfig

    start = time.monotonic()
    device, dtype = runs.check_device(options.device), runs.check_dtype(options.dtype, options.device)
    where, label_set = runs.announce(device, dtype), get_label_set(options.label_set)
    changes = given_fields(options, TransferConfig, leave_out=("domain", "prompt"))
    network = segmentation.load_network(options.network).to(device)
    model = diffusion.load(options.model, device=device, dtype=dtype, **_model_settings(options))
    runs.remove_metrics(options.out)
    places = (options.images, options.out)
    report = redrawing.redraw_target(network, *places, model, label_set, options.layout, options.domain, **changes)
    metrics: dict[str, Any] = {"report": report}
    print_errors(report.errors.values(), options.out / redrawing.REDRAWN_FOLDER / "report.json")
    if options.labels is not None and report.ok:
        redrawn = options.out / redrawing.REDRAWN_FOLDER / "images"
        for name, images in {"before": options.images, "after": redrawn}.items():
            dataset = FolderDataset(images, options.labels, label_set, cache=False)
            metrics[name] = evaluation.evaluate(network, dataset, label_set, progress=True)["miou"]
            print(f"{name}: mIoU {metrics[name]:5.1f} %")
    if report.ok:
        settings = {name: value for name, value in vars(options).items() if name != "run"}
        runs.save_metrics(options.out, "redraw", settings, metrics, time.monotonic() - start, where)
    return 0 if report.ok else 1


# ---------------------------------------------------------------- info


def _info_options(sub: argparse.ArgumentParser) -> None:
    _model_options(sub)


def _info(options: argparse.Namespace) -> int:
    from zodi import diffusion
    from zodi.support import runs

    found = diffusion.examine(options.model, **_model_settings(options))
    print("domains, with the paper's strengths or, where it has its own, the model's")
    for domain in DOMAINS.values():
        strength = found.defaults.strengths.get(domain.name, domain.strength)
        print(f"  {domain.name:<8} strength {strength:.2f}  {domain.prompt!r}")
    print(f"\nmodel {found.name}, family {found.family}")
    runs.print_settings(found.will_do)
    print(found.parts.to_string(index=False))
    if found.parts["parameters"].sum() <= LARGEST_LOADED:
        model = diffusion.load(options.model, **_model_settings(options))
        print(f"weights {diffusion.fingerprint(model)}")
    runs.print_settings(found.defaults)
    print("\nenvironment; the device is what auto means here")
    device = runs.best_device()
    runs.print_settings(runs.environment(runs.device_text(device, runs.best_dtype(device))))
    return 0


COMMANDS = {
    "transfer": Command("transfer a folder of images to another domain", _transfer_options, _transfer),
    "import": Command("import images that another program made from the source images", _import_options, _import),
    "adapt": Command("train a segmentation network on source and synthesized images", _adapt_options, _adapt),
    "evaluate": Command("measure the mIoU of a trained network on every test domain", _evaluate_options, _evaluate),
    "estimate": Command("estimate a network's mIoU on a domain without target images", _estimate_options, _estimate),
    "redraw": Command("redraw target photographs in the source's domain", _redraw_options, _redraw),
    "info": Command("print the domains, what the diffusion model is and will do, and versions", _info_options, _info),
}

if __name__ == "__main__":
    sys.exit(main())
