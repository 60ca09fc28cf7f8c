"""Marks on views: they tell the OpenAPI document what APIFlask does not read off by itself.

Each mark is a decorator that leaves the view as it is; ``openapi`` completes the document by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...errors import AccountError

View = TypeVar("View", bound=Callable[..., Any])

_ATTRIBUTE = "_marks"


@dataclass
class Marks:
    """All that the decorators of this module have said of one view."""

    takes_token: bool = False
    takes_ops_token: bool = False
    raises: tuple[type[AccountError], ...] = ()
    refuses: tuple[int, ...] = ()
    # What the view says with such an error, by the name of each case, where it is not the one
    # sentence of the class.
    says: dict[type[AccountError], dict[str, str]] = field(default_factory=dict)
    uploads: str | None = None
    # The view answers with the body of its 200 under this other status too; the text says what it
    # means.
    also_answers: tuple[str, str] | None = None
    # The view looks at these headers of the request, as OpenAPI's parameters.
    takes: list[dict[str, Any]] = field(default_factory=list)
    # The answer has these headers, by status: names and examples.
    sends: dict[str, dict[str, str]] = field(default_factory=dict)


def marks_of(view: Callable[..., Any]) -> Marks:
    """Return the marks of *view*, which it shares with every function that wraps it."""
    marks: Marks = view.__dict__.setdefault(_ATTRIBUTE, Marks())
    return marks


def takes_token(view: View, *refusals: type[AccountError]) -> View:
    """Say that *view* wants a bearer token, and with which errors a guard refuses it otherwise."""
    marks = marks_of(view)
    marks.takes_token = True
    marks.raises = (*refusals, *marks.raises)
    return view


def raises(*errors: type[AccountError]) -> Callable[[View], View]:
    """Say which errors a view may answer with; the document gets their statuses and bodies."""

    def mark(view: View) -> View:
        marks = marks_of(view)
        marks.raises = (*marks.raises, *errors)
        return view

    return mark


def says(error: type[AccountError], **sentences: str) -> Callable[[View], View]:
    """Say what an *error* of :func:`raises` says in this view: a sentence for each case of it."""

    def mark(view: View) -> View:
        marks_of(view).says[error] = sentences
        return view

    return mark


def refuses(*statuses: int) -> Callable[[View], View]:
    """Say what else the framework may answer instead of a view, by ``errors.FRAMEWORK``."""

    def mark(view: View) -> View:
        marks_of(view).refuses = statuses
        return view

    return mark


def uploads(part: str) -> Callable[[View], View]:
    """Say that a view takes its body as JSON or as a form, with a file as its *part*."""

    def mark(view: View) -> View:
        marks_of(view).uploads = part
        return view

    return mark


def sends(status: int, **headers: str) -> Callable[[View], View]:
    """Say which headers an answer has, by an example each; ``_`` stands for ``-``."""

    def mark(view: View) -> View:
        named = {name.replace("_", "-"): example for name, example in headers.items()}
        marks_of(view).sends.setdefault(str(status), {}).update(named)
        return view

    return mark


def also_answers(status: int, description: str) -> Callable[[View], View]:
    """Say that a view answers with the body of its 200 under another *status* too."""

    def mark(view: View) -> View:
        marks_of(view).also_answers = (str(status), description)
        return view

    return mark


def takes(name: str, example: str, description: str) -> Callable[[View], View]:
    """Say which header of the request a view looks at."""

    def mark(view: View) -> View:
        marks_of(view).takes.append(
            {
                "in": "header",
                "name": name,
                "description": description,
                "schema": {"type": "string"},
                "example": example,
            }
        )
        return view

    return mark
