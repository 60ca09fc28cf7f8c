"""The guard of what only the operator's machines may ask: ``OPS_TOKEN``."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, TypeVar

from apiflask import APIFlask
from flask import current_app, request
from werkzeug.exceptions import NotFound

from ...errors import NotAuthenticated
from ...web import services
from .describe import marks_of

View = TypeVar("View", bound=Callable[..., Any])

_SCHEME = "Bearer "


def for_operations(view: View) -> View:
    """Let only the operator's machines ask *view*, by any method, as :func:`init_app` says."""
    marks_of(view).takes_ops_token = True
    return view


def init_app(app: APIFlask) -> None:
    """Guard the views of *app* that are :func:`for_operations`.

    Where ``OPS_TOKEN`` is set, they want it as the bearer token. Where it is not, they are open in
    development and, in production, as if they were not there. Call it after ``auth.init_app``, by
    which the scheme is read in any case.
    """
    app.before_request(_admit)


def _admit() -> None:
    # This is a hook and no wrapper of the view: Flask answers OPTIONS without calling the view.
    view = current_app.view_functions.get(request.endpoint or "")
    if view is None or not marks_of(view).takes_ops_token:
        return
    settings = services().settings
    if settings.hides_operations:
        raise NotFound
    given = request.headers.get("Authorization", "").removeprefix(_SCHEME)
    if not settings.shows_operations_to_all and not _is_same(given, settings.ops_token):
        raise NotAuthenticated("Send the service's OPS_TOKEN as the bearer token.")


def _is_same(given: str, token: str) -> bool:
    """Compare in a time that does not tell how much of *given* is right.

    Bytes are compared: of two texts, ``compare_digest`` takes ASCII only and raises for any other.
    """
    return hmac.compare_digest(given.encode(errors="surrogatepass"), token.encode())
