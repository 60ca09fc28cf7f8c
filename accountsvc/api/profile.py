"""A person's own profile, password and avatar. Only the owner writes here, staff do not."""

from __future__ import annotations

from typing import Any

from apiflask import APIBlueprint
from sqlalchemy.orm import Session

from .. import documents
from ..accounts import avatars, credentials, profiles
from ..adapters import images
from ..adapters.throttle import EMAIL_CHANGE, PASSWORD_CHANGE, PROFILE_WRITE, UPLOAD
from ..db.addresses import is_another
from ..db.models import Account
from ..errors import (
    AccountError,
    Busy,
    ConfirmationRequired,
    ImageTooLarge,
    InvalidImage,
    InvalidInput,
    StoreUnavailable,
    Throttled,
    WrongPassword,
)
from ..web import client, committed, services
from .http import auth, bodies, schemas
from .http.auth import Caller
from .http.describe import raises, uploads
from .session import signed_in

bp = APIBlueprint("profile", __name__, tag="Profile")


@bp.route("/profile/", methods=["GET", "POST"])
@auth.signed_in
@bp.output(schemas.User)
def show(*, caller: Caller) -> dict[str, object]:
    """Show the caller's own profile

    A body is ignored.
    """
    return documents.user_document(caller.account, now=caller.now)


@bp.route("/profile/<int:user_id>/update/", methods=["PUT", "PATCH"])
@auth.owner
@auth.counted(PROFILE_WRITE)
@bp.input(schemas.ProfileUpdate, location="json_or_form", arg_name="changes")
@uploads("avatar")
@bp.output(schemas.User)
@raises(
    InvalidInput,
    InvalidImage,
    ImageTooLarge,
    ConfirmationRequired,
    Throttled,
    WrongPassword,
    StoreUnavailable,
    Busy,
)
def update(user_id: int, *, caller: Caller, changes: dict[str, str]) -> dict[str, object]:
    """Change some fields of one's profile, or the avatar

    The fields are checked first, then the image, then they are changed, then it is stored: a bad
    field or a bad image changes nothing. It is decoded outside any transaction.

    Another e-mail address wants a fresh token, else ``password`` in the body (401
    ``confirmation_required``). It is pending, for 72 hours: it is shown as `pending_email`, beside
    the old `email`, and becomes the account's when the link in the mail to it is opened and the
    password is entered on its page. The address of today, alone, calls it off, for a fresh token or
    the password too.
    """
    profiles.check(caller.account, changes)
    image = bodies.uploaded("avatar")
    normalised = None
    if image is not None:
        services().throttle.spend(UPLOAD, account=str(caller.account.public_id), address=client())
        normalised = images.normalise(image)
    password = changes.pop("password", None)
    asks = "email" in changes and is_another(caller.account.email, changes["email"])
    if asks or profiles.calls_off(caller.account, changes):
        # To call it off takes as much: an old session would keep its owner at a mailbox that
        # somebody else reads.
        auth.confirm(caller, "fresh", lambda: password)
    if asks:
        services().throttle.spend(EMAIL_CHANGE, account=str(caller.account.public_id))

    def change(session: Session) -> Account:
        return profiles.update_profile(
            session,
            user_id,
            epoch=caller.epoch,
            changes=changes,
            by=caller.actor(user_id),
            grace=services().promise.grace,
        )

    unchanged = profiles.changes_nothing(caller.account, changes)
    account = caller.account if unchanged else committed(change)
    if normalised is not None:
        with avatars.file_turns.take():
            account = avatars.replace_avatar(
                services().database,
                services().avatars,
                user_id,
                epoch=caller.epoch,
                image=normalised,
                by=caller.actor(user_id),
            )
    return documents.user_document(account, now=caller.now)


@bp.post("/profile/<int:user_id>/password/")
@auth.owner
@bp.input(schemas.PasswordChange)
@bp.output(schemas.SignedIn)
@raises(InvalidInput, Throttled, WrongPassword, Busy)
def change_password(user_id: int, *, caller: Caller, json_data: dict[str, str]) -> dict[str, Any]:
    """Change one's password and end every other session

    Ten times an hour.
    """
    throttle, owner = services().throttle, str(caller.account.public_id)
    throttle.spend(PASSWORD_CHANGE, account=owner)
    try:
        with services().attempts.password(
            caller.account.email, address=client(), failure="confirmation.failed"
        ):
            account = credentials.change_password(
                services().database,
                services().hasher,
                caller.claims,
                password=json_data["password"],
                new_password=json_data["new_password"],
                promise=services().promise,
            )
    except AccountError:
        # What changes nothing is no change: whoever has got hold of a session, but not of the
        # password, would otherwise use up those of the owner.
        throttle.take_back(PASSWORD_CHANGE, account=owner)
        raise
    return signed_in(account)
