"""Command line for what we measure: `python -m zodi.studies COMMAND --help`. The workflow calls most of it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zodi.domains import TARGETS
from zodi.support.options import (
    Command,
    add_fields,
    device_option,
    dtype_option,
    folder,
    given_fields,
    run_command,
)

if TYPE_CHECKING:
    from zodi.studies import quality


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command("python -m zodi.studies", "What we measure.", COMMANDS, arguments)


def _candidate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=folder, required=True, help="the profile's results folder")
    sub.add_argument("--variant", required=True, help="row of the tables")
    sub.add_argument("--domain", default="", help="target domain; not for source-only")
    sub.add_argument("--network", required=True, help="ARCHITECTURE/ENCODER")
    sub.add_argument("--method", default="stochastic_inversion", help="method of the held-out images' transfer")
    sub.add_argument("--seed", type=int, default=0, help="(default: 0)")
    sub.add_argument("--changes", type=json.loads, default={}, help="JSON: other values for settings of the recipe")
    device_option(sub)


def _candidate(options: argparse.Namespace) -> int:
    from zodi.studies import evidence
    from zodi.support import runs

    device = str(runs.check_device(options.device))
    runs.announce(device)
    candidate = evidence.Candidate(options.variant, options.domain, options.network, options.seed)
    file = evidence.run_candidate(candidate, options.results, options.method, device, **options.changes)
    print(f"metrics: {file}")
    return 0


def _redrawn_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=folder, required=True, help="the profile's results folder")
    sub.add_argument("--network", required=True, help="ARCHITECTURE/ENCODER")
    sub.add_argument("--seed", type=int, default=0, help="of the source-only run (default: 0)")
    sub.add_argument("--domains", nargs="+", required=True, help="test domains")
    sub.add_argument("--model", default="mini", help="mini (default) or a folder in diffusers' format")
    sub.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    _place_options(sub)


def _redrawn(options: argparse.Namespace) -> int:
    from zodi import diffusion
    from zodi.studies import redrawn

    place = _place(options)
    model = diffusion.load(options.model, **place)
    changes = {"num_inference_steps": options.steps} if options.steps else {}
    run = (options.results, options.network, options.seed, options.domains)
    print(f"metrics: {redrawn.run_redrawn(*run, model, place['device'], **changes)}")
    return 0


def _results_and_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=folder, default=Path("results/quality"), help="(default: results/quality)")
    sub.add_argument("--model", default="mini", help="mini (default) or a folder in diffusers' format")


def _place_options(sub: argparse.ArgumentParser) -> None:
    device_option(sub)
    dtype_option(sub)


def _place(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `_place_options` mean on this machine, as `device` and `dtype`; also printed."""
    from zodi.support import runs

    device, dtype = runs.check_device(options.device), runs.check_dtype(options.dtype, options.device)
    runs.announce(device, dtype)
    return {"device": str(device), "dtype": dtype}


def _quality_options(sub: argparse.ArgumentParser) -> None:
    from zodi.studies import quality

    _results_and_model(sub)
    add_fields(sub, quality.QualityConfig, leave_out=("model", "graders"))
    add_fields(sub.add_argument_group("settings of the graders"), quality.GraderConfig)


def _images_options(sub: argparse.ArgumentParser) -> None:
    _quality_options(sub)
    _place_options(sub)


def _quality_config(options: argparse.Namespace) -> "quality.QualityConfig":
    from zodi.studies import quality

    graders = quality.GraderConfig(**given_fields(options, quality.GraderConfig))
    given = given_fields(options, quality.QualityConfig, leave_out=("model", "graders"))
    return quality.QualityConfig(options.model, graders=graders, **given)


def _images(options: argparse.Namespace) -> int:
    from zodi.studies import quality

    table = quality.measure_images(_quality_config(options), options.results, **_place(options))
    print(table.to_markdown(index=False))
    return 0


def _quality(options: argparse.Namespace) -> int:
    from zodi.studies import quality

    for name, table in quality.measure(_quality_config(options), options.results).items():
        print(f"\n{name}\n{table.to_markdown(index=name not in ('images', 'verdicts'))}")
    return 0


def _try_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("grid", nargs="+", type=_values, metavar="NAME=V1,V2", help="for example strength=0.6,0.8")
    _results_and_model(sub)
    sub.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="(default: all five)")
    sub.add_argument("--scenes", type=int, default=24, help="pretraining scenes (default: 24)")
    _place_options(sub)


def _values(text: str) -> tuple[str, list]:
    name, _, values = text.partition("=")
    try:
        return name, [json.loads(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=V1,V2 with numbers, true or false") from None


def _try(options: argparse.Namespace) -> int:
    from zodi.studies import quality

    config, grid = quality.QualityConfig(options.model), dict(options.grid)
    frame = quality.try_settings(config, options.results, grid, options.domains, options.scenes, **_place(options))
    print(frame.round(3).to_string(index=False))
    return 0


def _estimates_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=folder, required=True, help="results folder of the profile estimation")


def _estimates(options: argparse.Namespace) -> int:
    from zodi.studies import estimates

    found = estimates.judge(options.results, options.results)
    print(f"mean error, points\n{found.errors.round(2).to_markdown()}\n\n{found.verdicts.to_markdown(index=False)}")
    return 0


def _bench_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--only", nargs="+", default=(), metavar="NAME", help="benchmarks to run (default: all)")
    sub.add_argument("--out", type=folder, default=Path("benchmarks"), help="results (default: benchmarks)")


def _bench(options: argparse.Namespace) -> int:
    from zodi.studies import bench

    return bench.main(options.out, options.only)


COMMANDS = {
    "candidate": Command("train and score one network on which estimates are tested", _candidate_options, _candidate),
    "redrawn": Command("score a source-only run on redrawn test images", _redrawn_options, _redrawn),
    "images": Command("grade the transfers of the profile quality: domain and layout", _images_options, _images),
    "quality": Command("make the tables and verdicts of the profile quality", _quality_options, _quality),
    "estimates": Command("print corrections and verdicts of the profile estimation", _estimates_options, _estimates),
    "try": Command("grade ZoDi with other settings, on pretraining scenes", _try_options, _try),
    "bench": Command("time transfer and training: the authors' loop against ours", _bench_options, _bench),
}

if __name__ == "__main__":
    sys.exit(main())
