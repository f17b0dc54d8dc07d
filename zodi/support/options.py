"""Command lines: options from a dataclass and its docstring, and commands that are loaded only when asked for."""

import argparse
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

SHOWN_ERRORS = 20
# The names in `zodi.support.runs.DTYPES`, a module that loads torch.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_fields(
    parser: argparse.ArgumentParser,
    config: type,
    leave_out: Collection[str] = (),
    short: Mapping[str, str] | None = None,
    show_defaults: bool = True,
) -> None:
    """Add an option for every field of a dataclass; its help is the field's entry under `Attributes:`.

    Args:
        parser: gets the options; an option that is not given leaves no trace in the namespace, see `given_fields`.
        config: the dataclass. Fields are bool, int, float, str, one of them or None, or tuples of them.
        leave_out: fields without an option.
        short: field -> a second, shorter name for its option.
        show_defaults: whether the help states the dataclass's defaults; False where other defaults apply.
    """
    texts = field_texts(config)
    for field in (field for field in fields(config) if field.name not in leave_out):
        kinds = [kind for kind in _kinds(field.type) if kind is not types.NoneType]
        flags = [f"--{name.replace('_', '-')}" for name in (field.name, (short or {}).get(field.name)) if name]
        text = texts.get(field.name, "")
        if show_defaults and field.default is not MISSING:
            text += f" (default: {field.default})"
        settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kinds == [bool]:
            settings["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kinds[0]) is tuple:
            inner = typing.get_args(kinds[0])
            settings |= {"nargs": "+" if Ellipsis in inner else len(inner), "type": inner[0]}
        else:
            settings["type"] = kinds[0]
        parser.add_argument(*flags, **settings)


def given_fields(options: argparse.Namespace, config: type, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that the user gave, except those left out; lists become tuples."""
    names = [field.name for field in fields(config) if field.name not in leave_out]
    given = {name: vars(options)[name] for name in names if name in vars(options)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def field_texts(config: type) -> dict[str, str]:
    """What the docstring of a dataclass says under `Attributes:`, by field; `a, b: text` applies to both."""
    section = (config.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which `zodi.support.runs.check_device` reads."""
    parser.add_argument("--device", default="auto", help="where to compute (default: auto: cuda, else mps, else cpu)")


def dtype_option(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, which `zodi.support.runs.check_dtype` reads."""
    text = "number type of the diffusion model's networks (default: auto: half precision if the device has it)"
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=text)


def folder(text: str) -> Path:
    """A path given by the user, with `~` resolved: in `--out=~/x` the shell leaves it as it is.

    Raises:
        ValueError: if it is empty, which would mean the current folder, or the home of a user who does not exist.
    """
    if not text.strip():
        raise ValueError("found an empty path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: found no home folder for this user") from error


def print_errors(messages: Collection[str], report: Path) -> None:
    """Print messages on standard error, one per line; of many, only the first ones and where the rest are."""
    for message in list(messages)[:SHOWN_ERRORS]:
        print(f"error: {message}", file=sys.stderr)
    if len(messages) > SHOWN_ERRORS:
        print(f"error: {len(messages) - SHOWN_ERRORS} more in {report}", file=sys.stderr)


# ---------------------------------------------------------------- commands


class Command(NamedTuple):
    """A command: one line of help, the function that adds its options, and the one that runs it -> exit code."""

    text: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def run_command(
    program: str, description: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None
) -> int:
    """Run one of several commands; returns the exit code: 2 for wrong input, 130 after Ctrl-C, else the command's.

    Only the chosen command adds its options, so that the list of commands appears at once.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    try:
        for name, command in commands.items():
            sub = subparsers.add_parser(name, help=command.text, description=command.text, allow_abbrev=False)
            if arguments[:1] == [name]:
                command.add_options(sub)
                sub.set_defaults(run=command.run)
        options = parser.parse_args(arguments)
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
