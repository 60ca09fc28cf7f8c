"""A forgotten password must not become a purge: resetting it by mail, in the grace period too."""

from __future__ import annotations

from apiflask import APIBlueprint

from .. import tokens
from ..accounts import credentials
from ..adapters.throttle import PASSWORD_RESET, TOKEN
from ..db.addresses import address_key
from ..db.engine import database_now
from ..errors import Busy, InvalidInput, Throttled, TokenNotValid
from ..web import about, client, committed, refused, services
from .http import schemas
from .http.describe import raises

bp = APIBlueprint("reset", __name__, tag="Session")


@bp.post("/password-reset/")
@bp.input(schemas.PasswordResetRequest)
@bp.output(schemas.Message, 202)
@raises(InvalidInput, Throttled)
def ask(json_data: dict[str, str]) -> dict[str, str]:
    """Ask for a mail with a link to set a new password

    The answer is always the same, known e-mail or not.
    """
    email = json_data["email"]
    throttle = services().throttle
    # Two questions, so that the address counts whatever the e-mail has left: it would otherwise
    # tell, by how soon it has to wait, for which e-mails others ask.
    throttle.spend(PASSWORD_RESET, address=client())
    answer = {"message": "If this email belongs to an account, a link is on its way to it."}
    try:
        throttle.spend(PASSWORD_RESET, account=address_key(email))
    except Throttled as exc:
        refused(exc)
        # Answer as always: a 429 for one e-mail would say that somebody else asks for a link to it.
        return answer
    committed(
        lambda session: credentials.request_password_reset(
            session, email, decoy_key=services().decoy_key, now=database_now(session)
        )
    )
    return answer


@bp.post("/password-reset/confirm/")
@bp.input(schemas.PasswordReset)
@bp.output(schemas.Message)
@raises(InvalidInput, TokenNotValid, Throttled, Busy)
def confirm(json_data: dict[str, str]) -> dict[str, str]:
    """Set a new password by the token of the mailed link

    Every session ends, every known address is told. A deactivated account stays deactivated.
    """
    services().throttle.spend(TOKEN, address=client())
    with services().reading() as session:
        claims = services().tokens.read(
            json_data["token"], tokens.PASSWORD_RESET, now=database_now(session)
        )
    account = credentials.reset_password(
        services().database,
        services().hasher,
        claims,
        json_data["new_password"],
        promise=services().promise,
    )
    about(account.public_id)
    services().attempts.clear(account, address=client())
    return {"message": "The password was changed. Sign in with the new one."}
