"""Command line for making the miniature: `python -m zodi.miniature COMMAND --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zodi.domains import TARGETS
from zodi.support.options import Command, add_fields, device_option, folder, given_fields, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command("python -m zodi.miniature", "The miniature: its scenes and its model.", COMMANDS, arguments)


def _render_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=folder, required=True, help="data set folder to make")
    sub.add_argument("--train", type=int, default=150, help="source scenes (default: 150)")
    sub.add_argument("--test", type=int, default=100, help="test scenes in every domain (default: 100)")
    sub.add_argument("--held-out", type=int, default=0, help="further source scenes, in val/, for estimates")
    sub.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="target domains")
    sub.add_argument("--height", type=int, default=96, help="pixels (default: 96)")
    sub.add_argument("--width", type=int, default=192, help="pixels (default: 192)")


def _render(options: argparse.Namespace) -> int:
    from zodi.miniature.dataset import write_miniature

    write_miniature(
        options.out,
        options.train,
        options.test,
        options.domains,
        options.height,
        options.width,
        held_out=options.held_out,
    )
    print(f"data set: {options.out}")
    return 0


def _pretrain_options(sub: argparse.ArgumentParser) -> None:
    from zodi.miniature import pretrain

    sub.add_argument("--out", type=folder, default=Path("results/pretrain"), help="training states, logs and caches")
    sub.add_argument("--weights", type=folder, default=pretrain.WEIGHTS_FOLDER, help="where the checkpoint goes")
    sub.add_argument("--stages", nargs="+", choices=pretrain.STAGES, default=pretrain.STAGES, help="what to train")
    device_option(sub)
    sub.add_argument("--export-only", action="store_true", help="write the checkpoint of an unfinished training run")
    add_fields(sub, pretrain.PretrainConfig)


def _pretrain(options: argparse.Namespace) -> int:
    from zodi.miniature import pretrain
    from zodi.support.runs import print_settings

    config = pretrain.PretrainConfig(**given_fields(options, pretrain.PretrainConfig))
    print_settings(config)
    if options.export_only:
        pretrain.export(config, options.out, options.weights / pretrain.MINI_FOLDER.name)
    else:
        pretrain.pretrain(config, options.out, options.weights, options.stages, options.device)
    return 0


COMMANDS = {
    "render": Command("render a miniature data set of street scenes", _render_options, _render),
    "pretrain": Command("train the miniature's models from scratch", _pretrain_options, _pretrain),
}

if __name__ == "__main__":
    sys.exit(main())
