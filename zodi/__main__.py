"""Command line of the stages: `python -m zodi COMMAND --help`.

Exit codes: 0 all done, 1 a part could not be done (each one is named), 2 nothing was done because of the input.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zodi.domains import DOMAINS, TARGETS
from zodi.labels import LABEL_SETS, get_label_set

# Modules that load torch are imported by the commands that need them, so that --help answers at once.

SHOWN_ERRORS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["pretrain"]:
            # It makes its options from its settings, which would cost loading torch here.
            from zodi import pretrain

            pretrain.main(arguments[1:])
            return 0
        options = _parser().parse_args(arguments)
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zodi", description="ZoDi, stage by stage.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    sub = command("render", _render, "render a miniature data set of street scenes")
    sub.add_argument("--out", type=Path, required=True, help="folder to make")
    sub.add_argument("--train", type=int, default=150, help="source scenes (default: 150)")
    sub.add_argument("--test", type=int, default=100, help="test scenes a domain (default: 100)")
    sub.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="target domains")
    sub.add_argument("--height", type=int, default=96, help="pixels (default: 96)")
    sub.add_argument("--width", type=int, default=192, help="pixels (default: 192)")

    commands.add_parser("pretrain", help="train the miniature's diffusion model from nothing", add_help=False)

    sub = command("transfer", _transfer, "transfer a folder of images to another domain")
    _add_transfer_options(sub)

    sub = command("adapt", _adapt, "train a segmentation network on source and transferred images")
    sub.add_argument("--data", type=Path, required=True, help="data set folder (dataset.json, train/, test/)")
    sub.add_argument("--variant", default="zodi", help="row of the tables (default: zodi)")
    sub.add_argument("--domain", choices=DOMAINS, help="target domain; not for source-only")
    sub.add_argument("--synth", type=Path, help="folder that `transfer` wrote for the data set's train/images")
    sub.add_argument("--recipe", default="mini", help="settings of the training: mini (default) or paper")
    sub.add_argument("--network", help="ARCHITECTURE/ENCODER (default: the recipe's)")
    sub.add_argument("--weights", help="mini, imagenet or a file with weights (default: the recipe's)")
    sub.add_argument("--steps", type=int, help="optimisation steps (default: the recipe's, 200 for mini)")
    sub.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
    sub.add_argument("--workers", type=int, default=0, help="processes that read images (default: none but this one)")
    sub.add_argument("--seed", type=int, default=0, help="(default: 0)")
    sub.add_argument("--out", type=Path, required=True, help="folder of the run")

    sub = command("evaluate", _evaluate, "mIoU of a trained network on every test domain")
    sub.add_argument("--network", type=Path, required=True, help="folder `network/` that `adapt` wrote")
    sub.add_argument("--data", type=Path, required=True, help="data set folder")
    sub.add_argument("--domains", nargs="+", help="test domains (default: all of the data set)")
    sub.add_argument("--out", type=Path, help="folder for metrics.json")

    sub = command("estimate", _estimate, "estimate a network's mIoU on a domain without target images")
    sub.add_argument("--network", type=Path, required=True, help="folder `network/` that `adapt` wrote")
    sub.add_argument("--images", type=Path, required=True, help="folder of source images that it was not trained on")
    sub.add_argument("--labels", type=Path, required=True, help="folder of their label maps")
    sub.add_argument("--label-set", default="cityscapes", help="as for transfer (default: cityscapes)")
    sub.add_argument("--domain", required=True, help="target domain, or a prompt")
    sub.add_argument("--strength", type=float, help="0 .. 1 (default: the domain's; 0.65 for a prompt)")
    sub.add_argument("--model", default="mini", help="mini (default), a folder in diffusers' format, or a hub id")
    sub.add_argument("--seeds", type=int, default=2, help="transfers of every image (default: 2)")
    sub.add_argument("--reference", type=Path, help="folder of a network that finds the layout in good images")
    sub.add_argument("--out", type=Path, required=True, help="folder of the generated images and of classes.csv")

    sub = command("candidate", _candidate, "train and score one network on which estimates are tested")
    sub.add_argument("--results", type=Path, required=True, help="the profile's results folder")
    sub.add_argument("--variant", required=True, help="row of the tables")
    sub.add_argument("--domain", default="", help="target domain; not for source-only")
    sub.add_argument("--network", required=True, help="ARCHITECTURE/ENCODER")
    sub.add_argument("--method", default="stochastic_inversion", help="of the held-out images' transfer")
    sub.add_argument("--seed", type=int, default=0, help="(default: 0)")
    sub.add_argument("--changes", type=json.loads, default={}, help="JSON: other values for settings of the recipe")

    sub = command(
        "quality", _quality, "measure the transfer of a checkpoint on the miniature: domain, layout, use, speed"
    )
    sub.add_argument("--model", default="mini", help="mini (default) or a folder in diffusers' format")
    sub.add_argument("--out", type=Path, default=Path("results/quality"), help="(default: results/quality)")
    sub.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="(default: all five)")
    sub.add_argument("--seeds", type=int, default=3, help="seeds a row (default: 3)")
    sub.add_argument("--images-only", action="store_true", help="grade images only, train nothing but the graders")
    sub.add_argument(
        "--try",
        dest="grid",
        nargs="+",
        type=_values,
        metavar="NAME=V1,V2",
        help="try transfer settings on pretraining scenes instead, for example strength=0.6,0.8 guidance_scale=1,2",
    )

    sub = command("bench", _bench, "speed of transfer and training: the authors' loop against ours, on this machine")
    sub.add_argument("--only", nargs="+", default=(), metavar="NAME", help="benchmarks to run (default: all)")
    sub.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of the results (default: benchmarks)")

    sub = command("info", _info, "print domains, parts of the diffusion model and versions")
    sub.add_argument("--model", default="mini", help="mini, folder or hub id (default: mini)")
    return parser


def _add_transfer_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--images", type=Path, required=True, help="folder of images, any sizes; subfolders are kept")
    sub.add_argument("--labels", type=Path, help="folder of label maps (8-bit PNG) with the names of their images")
    sub.add_argument(
        "--label-set",
        default="cityscapes",
        help=f"what label values mean: {', '.join(LABEL_SETS)}, or a mapping file.yaml (see zodi.labels.read_mapping)",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the result; the same settings go on there")
    sub.add_argument("--domain", choices=DOMAINS, help="take prompt and strength of a domain of the paper")
    sub.add_argument("--prompt", help="description of the target; ', best quality' is added as in the paper")
    sub.add_argument("--strength", type=float, help="0 .. 1 (default: the domain's; 0.65 for a free prompt)")
    sub.add_argument(
        "--method",
        default="stochastic_inversion",
        help="stochastic_inversion (ZoDi, default), sdedit, ddim_inversion, controlnet_only, vae_round_trip, "
        "photometric, or with --domain an ablation of ZoDi, for example clear_prompt",
    )
    sub.add_argument("--model", default="mini", help="mini (default), a folder in diffusers' format, or a hub id")
    sub.add_argument("--controlnet", help="folder, hub id or .safetensors file, when the model has none")
    sub.add_argument("--download", action="store_true", help="allow a hub model to be downloaded")
    sub.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the networks")
    sub.add_argument("--variant", help="of the UNet's weights: non_ema for those of the authors")
    sub.add_argument("--compile", action="store_true", help="torch.compile the networks; worth it for many images")
    sub.add_argument("--steps", type=int, help="num_inference_steps (default: the model's)")
    sub.add_argument("--guidance", type=float, help="guidance_scale, 1 = none (default: the model's)")
    sub.add_argument("--align", action="store_true", help="encode at the first visited timestep; the paper does not")
    sub.add_argument("--noise", choices=("per_image", "paper"), default="per_image", help="paper: same for all images")
    sub.add_argument("--palette", choices=("cityscapes", "ade20k"), help="layout colours (default: the model's)")
    sub.add_argument("--seed", type=int, default=0, help="(default: 0)")
    sub.add_argument("--batch-size", type=int, default=8, help="(default: 8)")
    sub.add_argument("--limit", type=int, help="the first so many images only")
    sub.add_argument("--shard", type=_shard, metavar="I/N", help="do every N-th image from the I-th on (0 .. N-1)")


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, for example 0/4")
    return int(index), int(count)


def _values(text: str) -> tuple[str, list]:
    name, _, values = text.partition("=")
    try:
        return name, [json.loads(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=V1,V2 with numbers, true or false") from None


# ---------------------------------------------------------------- commands


def _render(options: argparse.Namespace) -> int:
    from zodi.datasets import write_miniature

    write_miniature(options.out, options.train, options.test, options.domains, options.height, options.width)
    print(f"data set: {options.out}")
    return 0


def _transfer(options: argparse.Namespace) -> int:
    from zodi import diffusion, runs, transfer
    from zodi.transfer_folder import transfer_folder

    if options.domain is None and options.prompt is None:
        raise ValueError("give --domain or --prompt")
    model = None
    if options.method not in transfer.WITHOUT_MODEL:
        import torch

        model = diffusion.load(
            options.model,
            controlnet=options.controlnet,
            device=options.device,
            dtype=getattr(torch, options.dtype),
            variant=options.variant,
            compile=options.compile,
            local_files_only=not options.download,
        )
    given = {
        "prompt": options.prompt,
        "strength": options.strength,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "palette": options.palette,
        "seed": options.seed,
        "noise": options.noise,
        "align": options.align,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    defaults = model.defaults if model is not None else diffusion.TransferDefaults()
    if options.domain is not None:
        config = transfer.domain_config(options.domain, options.method, defaults, **changes)
    else:
        config = transfer.prompt_config(defaults=defaults, method=options.method, **changes)
    runs.print_settings(config)
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
    )
    metrics = {"domain": options.domain, "method": options.method, "report": report}
    if report.ok and options.limit is None and options.shard is None:
        runs.save_metrics(options.out, "transfer", config, metrics, report.seconds)
    print(f"{report.done} done, {report.skipped} were there, {len(report.errors)} failed; {report.seconds} s")
    print(f"images: {options.out / 'images'}")
    for message in list(report.errors.values())[:SHOWN_ERRORS]:
        print(f"error: {message}", file=sys.stderr)
    if len(report.errors) > SHOWN_ERRORS:
        print(f"error: {len(report.errors) - SHOWN_ERRORS} more in {options.out / 'report.json'}", file=sys.stderr)
    return 0 if report.ok else 1


def _adapt(options: argparse.Namespace) -> int:
    from zodi import adaptation, datasets, evaluation, runs, segmentation

    start = time.monotonic()
    given = {"network": options.network, "weights": options.weights, "steps": options.steps, "seed": options.seed}
    changes = {name: value for name, value in given.items() if value is not None}
    config = adaptation.recipe(options.recipe, options.variant, **changes)
    row = adaptation.VARIANTS[options.variant]
    source = datasets.open_split(options.data, "train")
    if row.method is not None:
        if options.synth is None:
            raise ValueError(f"variant {row.name!r} needs --synth, the folder that `python -m zodi transfer` wrote")
        second = datasets.open_split(options.data, "train", images=options.synth / "images")
    elif row.name == "oracle":
        if options.domain is None:
            raise ValueError("variant 'oracle' needs --domain")
        second = datasets.open_split(options.data, f"train_{options.domain}")
    else:
        second = None
    if not row.source:
        source, second = second, None
    network, history = adaptation.train(
        config, source, second, options.out, progress=True, device=options.device, workers=options.workers
    )
    segmentation.save_network(network, options.out / "network")
    history.to_csv(options.out / "history.csv", index=False)
    scores = _scores(network, options.data, None)
    metrics = {
        "variant": row.name,
        "domain": options.domain or "",
        "network": config.network,
        "seed": config.seed,
        "images_seen": config.steps * config.batch_size * (1 if second is None else 2),
        "loss": history["loss"].tail(10).mean(),
        **evaluation.by_domain(scores),
    }
    settings = {"data": options.data, "synth": options.synth, "config": config}
    print(f"metrics: {runs.save_metrics(options.out, 'adapt', settings, metrics, time.monotonic() - start)}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from zodi import evaluation, runs, segmentation

    start = time.monotonic()
    scores = _scores(segmentation.load_network(options.network), options.data, options.domains)
    if options.out is not None:
        settings = {"network": options.network, "data": options.data}
        metrics = evaluation.by_domain(scores)
        print(f"metrics: {runs.save_metrics(options.out, 'evaluate', settings, metrics, time.monotonic() - start)}")
    return 0


def _scores(network: object, data: Path, domains: list[str] | None) -> dict[str, dict]:
    """Evaluate on test domains and print one line each."""
    from zodi import datasets, evaluation

    known = datasets.dataset_info(data)["domains"]
    unknown = [domain for domain in domains or [] if domain not in known]
    if unknown:
        raise ValueError(f"{data}: no test images of {unknown}; expected some of {known}")
    scores = {}
    for domain in domains or known:
        test = datasets.open_split(data, f"test/{domain}")
        scores[domain] = evaluation.evaluate(network, test, test.label_set, progress=True)
        print(f"{domain:<10} mIoU {scores[domain]['miou']:5.1f} %  ({len(test)} images)")
    return scores


def _estimate(options: argparse.Namespace) -> int:
    from zodi import estimation, runs, segmentation

    start = time.monotonic()
    networks = [folder and segmentation.load_network(folder) for folder in (options.network, options.reference)]
    changes = {} if options.strength is None else {"strength": options.strength}
    found = estimation.estimate(
        networks[0],
        options.images,
        options.labels,
        options.domain,
        options.out,
        label_set=get_label_set(options.label_set),
        model=options.model,
        seeds=range(options.seeds),
        reference=networks[1],
        **changes,
    )
    print(found.classes.round(1).to_string())
    print(found)
    with runs.atomic_path(options.out / "classes.csv") as temporary:
        found.classes.to_csv(temporary, index_label="class", float_format="%.4f")
    metrics = {"miou": found.miou, "low": found.low, "high": found.high, "kept": found.kept, "reliable": found.reliable}
    settings = {name: value for name, value in vars(options).items() if name != "run"}
    runs.save_metrics(options.out, "estimate", settings, metrics, time.monotonic() - start)
    return 0 if found.reliable else 1


def _candidate(options: argparse.Namespace) -> int:
    from zodi import evidence

    candidate = evidence.Candidate(options.variant, options.domain, options.network, options.seed)
    print(f"metrics: {evidence.run_candidate(candidate, options.results, options.method, **options.changes)}")
    return 0


def _quality(options: argparse.Namespace) -> int:
    from zodi import quality, runs

    config = quality.QualityConfig(model=options.model, domains=tuple(options.domains), seeds=options.seeds)
    runs.print_settings(config)
    if options.grid:
        print(quality.try_settings(config, options.out, dict(options.grid)).round(3).to_string(index=False))
        return 0
    for name, table in quality.measure(config, options.out, options.images_only).items():
        print(f"\n{name}\n{table.to_markdown(index=name not in ('images', 'verdicts'))}")
    print(f"\ntables: {options.out}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from zodi import bench

    return bench.main(options.out, options.only)


def _info(options: argparse.Namespace) -> int:
    from zodi import diffusion, runs

    model = diffusion.load(options.model)
    print("domains, with the strengths of the paper or, where it brings its own, of the model")
    for domain in DOMAINS.values():
        strength = model.defaults.strengths.get(domain.name, domain.strength)
        print(f"  {domain.name:<8} strength {strength:.2f}  {domain.prompt!r}")
    print(f"\nmodel {model.name}, weights {diffusion.fingerprint(model)}")
    print(diffusion.describe(model).to_string(index=False))
    runs.print_settings(model.defaults)
    print("\nenvironment")
    runs.print_settings(runs.environment())
    return 0


if __name__ == "__main__":
    sys.exit(main())
