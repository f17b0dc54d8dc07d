"""Options from a dataclass: types, help, what is given; commands and their exit codes."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from zodi.support.options import Command, add_fields, field_texts, folder, given_fields, run_command


@dataclass(frozen=True)
class Settings:
    """Settings of a test.

    Attributes:
        steps: how many; at least
            one, 100 % of them.
        low, high: the ends.
        size: (height, width), pixels.
        names: any number of them.
        frozen: None = whatever fits.
        fast: be quick.
    """

    steps: int = 3
    low: float = 0.0
    high: float | None = None
    size: tuple[int, int] = (2, 4)
    names: tuple[str, ...] = ()
    frozen: bool | None = None
    fast: bool = False


def parse(text: str, **settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_fields(parser, Settings, **settings)
    return parser.parse_args(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("--steps 5", {"steps": 5}),
        ("--n 6", {"steps": 6}),
        ("--high 0.5 --low 1", {"high": 0.5, "low": 1.0}),
        ("--size 8 16", {"size": (8, 16)}),
        ("--names a b c", {"names": ("a", "b", "c")}),
        ("--frozen", {"frozen": True}),
        ("--no-frozen --fast", {"frozen": False, "fast": True}),
    ],
)
def test_only_what_is_given_counts_and_has_the_type_of_its_field(text, expected):
    assert given_fields(parse(text, short={"steps": "n"}), Settings) == expected
    assert Settings(**expected) == Settings(**(expected | {}))


@pytest.mark.parametrize("text", ["--steps x", "--size 8", "--low"])
def test_wrong_values_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        parse(text)
    assert text.split()[0] in capsys.readouterr().err


def test_help_is_the_docstring_with_the_default(capsys):
    assert field_texts(Settings)["steps"] == "how many; at least one, 100 % of them."
    assert field_texts(Settings)["low"] == field_texts(Settings)["high"] == "the ends."
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "how many; at least one, 100 % of them. (default: 3)" in shown and "--no-frozen" in shown


def test_a_field_that_is_left_out_has_no_option(capsys):
    with pytest.raises(SystemExit):
        parse("--steps 5", leave_out=("steps",))
    options = argparse.Namespace(steps=None, low=1.0)
    assert given_fields(options, Settings, leave_out=("steps",)) == {"low": 1.0}


def test_home_is_resolved_where_the_shell_does_not():
    assert folder("~/x") == Path.home() / "x" and folder("a/~") == Path("a/~")


def _fails(error):
    def run(options):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        (lambda options: 1, 1, ""),
        (_fails(ValueError("wrong")), 2, "error: wrong\n"),
        (_fails(FileNotFoundError("gone")), 2, "error: gone\n"),
        (_fails(KeyboardInterrupt()), 130, "interrupted; the same command continues where it stopped\n"),
    ],
)
def test_commands_end_with_an_exit_code_and_one_line(run, code, message, capsys):
    loaded = []
    commands = {
        "one": Command("first", lambda parser: loaded.append("one"), run),
        "two": Command("second", lambda parser: loaded.append("two"), run),
    }
    assert run_command("program", "what it does", commands, ["one"]) == code
    assert capsys.readouterr().err == message
    assert loaded == ["one"], "only the chosen command adds its options"


@pytest.mark.parametrize("text", ["", " ", "~no-such-user/x"])
def test_paths_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"found an empty path|found no home folder"):
        folder(text)
