"""Between a view and the core: the services of this process, and the transaction that a view owns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast

import structlog
from flask import current_app
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ...db.engine import writing
from ...services import Services
from ...web import db

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ATTEMPTS = 3
_PAUSE_SECONDS = 0.05


def services() -> Services:
    return cast(Services, current_app.extensions["accountsvc"])


def committed(work: Callable[[Session], T]) -> T:
    """Run *work* in a writing transaction, commit it and return what it returned.

    A serialization failure, a deadlock or a connection that died is tried again, three times in all,
    but only while no COMMIT was sent: after that nobody knows whether it happened. *work* must do
    nothing outside the session, since it may run more than once.
    """
    session = db.session()
    attempt = 1
    while True:
        sent = False
        try:
            with writing(session):
                result = work(session)
                session.flush()
                sent = True
            return result
        except DBAPIError as exc:
            if sent or attempt == _ATTEMPTS or not _may_pass_at_once(exc):
                raise
            log.warning("a transaction is tried again", attempt=attempt, error=type(exc).__name__)
        time.sleep(_PAUSE_SECONDS * attempt)
        attempt += 1


def _may_pass_at_once(exc: DBAPIError) -> bool:
    """Say whether a second try is worth it now; a lock that was waited for in vain is not."""
    state = getattr(exc.orig, "sqlstate", None) or ""
    return exc.connection_invalidated or state.startswith(("40", "57P0", "08"))
