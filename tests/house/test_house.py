"""The limits of size hold in the code, so that each part can be read at once.

They are for ``accountsvc/`` and ``worker/``: 60 lines and seven parameters a function, 500 lines a
file, 100 columns a line. What may be larger is named here with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for name in ("accountsvc", "worker") for path in (ROOT / name).rglob("*.py"))

MOST_LINES, MOST_PARAMETERS = 60, 7
LONGEST_FILE, WIDEST_LINE = 500, 100

# Functions that may be longer or take more, by file and name, and files that may be longer or wider,
# each with its reason. A list of data is read entry by entry, whatever its length.
EXCEPTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function) and not is_command(node):
            yield node


def is_command(function: Function) -> bool:
    """Say whether Click calls it: it has a parameter for each option, and its help in the text."""
    decorators = [
        node.func if isinstance(node, ast.Call) else node for node in function.decorator_list
    ]
    return any(isinstance(node, ast.Attribute) and node.attr == "command" for node in decorators)


def named(path: Path, function: Function) -> str:
    return f"{path.relative_to(ROOT)}::{function.name}"


def lines_of(function: Function) -> int:
    """Count the lines of a function with its docstring, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters_of(function: Function) -> int:
    """Count what a caller has to know; the object of a method is not passed."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_no_function_is_too_long() -> None:
    found = {
        f"{named(path, function)}: {lines_of(function)} lines"
        for path in SOURCES
        for function in functions(path)
        if lines_of(function) > MOST_LINES and named(path, function) not in EXCEPTIONS
    }

    assert found == set(), f"part these into steps with names, of {MOST_LINES} lines at most each"


def test_no_function_takes_too_much() -> None:
    found = {
        f"{named(path, function)}: {parameters_of(function)} parameters"
        for path in SOURCES
        for function in functions(path)
        if parameters_of(function) > MOST_PARAMETERS and named(path, function) not in EXCEPTIONS
    }

    assert found == set(), (
        f"more than {MOST_PARAMETERS} parameters: pass those that go together as one object, "
        "or make the function a method of the object that holds them"
    )


def test_no_file_is_too_long() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {len(path.read_text().splitlines())} lines"
        for path in SOURCES
        if len(path.read_text().splitlines()) > LONGEST_FILE
        and str(path.relative_to(ROOT)) not in EXCEPTIONS
    }

    assert found == set(), (
        f"more than {LONGEST_FILE} lines: part the file by subject, in the same room"
    )


def test_no_line_is_too_wide() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in SOURCES
        if str(path.relative_to(ROOT)) not in EXCEPTIONS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > WIDEST_LINE
    ]

    assert found == [], (
        f"break these lines at {WIDEST_LINE} columns, comments, docstrings and strings too; "
        "`make format` does it for code alone"
    )


def test_every_exception_is_needed() -> None:
    """An exception that outlived its reason would hide the next one of that name."""
    large = {
        named(path, function)
        for path in SOURCES
        for function in functions(path)
        if lines_of(function) > MOST_LINES or parameters_of(function) > MOST_PARAMETERS
    } | {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for lines in [path.read_text().splitlines()]
        if len(lines) > LONGEST_FILE or any(len(line) > WIDEST_LINE for line in lines)
    }

    assert EXCEPTIONS.keys() <= large, "remove these from EXCEPTIONS: they are within the limits"
    assert all(EXCEPTIONS.values()), "say in EXCEPTIONS why"


@pytest.mark.parametrize(
    ("source", "lines", "parameters", "commands"),
    [
        ("def short(a, b): ...", 1, 2, 0),
        ("def method(self, a, *rest, key, **more): ...", 1, 4, 0),
        ("async def waits(\n    a,\n): ...", 3, 1, 0),
        ("@group.command('x')\ndef x(a): ...", 1, 1, 1),
        ("@group.command\ndef x(a): ...", 1, 1, 1),
        ("@other('x')\ndef x(a): ...", 1, 1, 0),
    ],
)
def test_the_limits_are_measured_right(
    source: str, lines: int, parameters: int, commands: int
) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, Function)

    assert (lines_of(function), parameters_of(function)) == (lines, parameters)
    assert is_command(function) is bool(commands)
