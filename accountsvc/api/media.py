"""Avatars, for anybody who has the link, while the account is active."""

from __future__ import annotations

from apiflask import APIBlueprint
from apiflask.schemas import FileSchema
from flask import Response, request
from sqlalchemy import select
from werkzeug.exceptions import NotFound

from .. import avatars
from ..database import reading
from ..errors import StoreUnavailable
from ..extensions import db
from ..models import Account
from .doorway import services
from .openapi import raises, sends

media = APIBlueprint("media", __name__, tag="Media")

# A deactivated account's avatar may be seen this much longer, from caches that asked before.
KEPT_SECONDS = 300
_ETAG = '"f0090e27ab25c12f4e0a760c800e6341"'


@media.get("/media/avatars/<key>")
@media.output(FileSchema(), content_type=avatars.CONTENT_TYPE)
@media.doc(responses={304: "Not changed"})
@raises(StoreUnavailable)
@sends(304, ETag=_ETAG)
@sends(200, ETag=_ETAG, Cache_Control="public, max-age=300")
def avatar(key: str) -> Response:
    """Serve an avatar; 404 from the moment in which its account is deactivated"""
    if not avatars.is_key(key):
        raise NotFound
    with reading(db.session()) as session:
        shown = session.scalar(
            select(Account.id).where(Account.avatar_key == key, Account.deactivated_at.is_(None))
        )
    if shown is None:
        raise NotFound
    file = services().avatars.open(key)
    if file is None:
        raise NotFound
    with file:
        response = Response(file.read(), content_type=avatars.CONTENT_TYPE)
    response.headers["Cache-Control"] = f"public, max-age={KEPT_SECONDS}"
    # A key names one image for ever.
    response.set_etag(key.partition(".")[0])
    response.make_conditional(request)
    return response
