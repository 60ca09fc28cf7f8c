"""Avatars, for anybody who has the link, while the account is active."""

from __future__ import annotations

from apiflask import APIBlueprint
from apiflask.schemas import FileSchema
from flask import Response, request
from sqlalchemy import select
from werkzeug.exceptions import NotFound

from ..accounts import avatars
from ..adapters import avatarstore
from ..db.models import Account
from ..errors import Busy, StoreUnavailable
from ..web import services
from .http.describe import raises, sends

bp = APIBlueprint("media", __name__, tag="Media")

# A cache may show an avatar for so many seconds without asking: for so much longer that of a
# deactivated account may be seen.
CACHED_SECONDS = 300
_ETAG = '"f0090e27ab25c12f4e0a760c800e6341"'


@bp.get("/media/avatars/<key>")
@bp.output(FileSchema(), content_type=avatarstore.CONTENT_TYPE)
@bp.doc(responses={304: "Not changed"})
@raises(StoreUnavailable, Busy)
@sends(304, ETag=_ETAG)
@sends(200, ETag=_ETAG, Cache_Control="public, max-age=300")
def avatar(key: str) -> Response:
    """Serve an avatar; 404 from the moment in which its account is deactivated"""
    if not avatarstore.is_key(key):
        raise NotFound
    with services().reading() as session:
        account_id = session.scalar(
            select(Account.id).where(Account.avatar_key == key, Account.deactivated_at.is_(None))
        )
    if account_id is None:
        raise NotFound
    with avatars.file_turns.take():
        file = services().avatars.open(key)
        if file is None:
            raise NotFound
        with file:
            response = Response(file.read(), content_type=avatarstore.CONTENT_TYPE)
    # Whoever saves it gets this name, and none that a client has made up.
    response.headers["Content-Disposition"] = 'inline; filename="avatar.webp"'
    response.headers["Cache-Control"] = f"public, max-age={CACHED_SECONDS}"
    # The key is good for an ETag: a new image gets a new key, so a cache never keeps an old one.
    response.set_etag(key.partition(".")[0])
    response.make_conditional(request)
    return response
