"""Another e-mail address in its two steps: a session asks, then mailbox and password agree."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.accounts import pending, profiles
from accountsvc.accounts.fields import email_problem
from accountsvc.db.engine import Clock, database_now
from accountsvc.db.models import Account
from accountsvc.services import Services
from accountsvc.tokens import CANCEL_EMAIL, CONFIRM_EMAIL, Claims
from tests.support.factories import PASSWORD, owner
from tests.support.moments import GRACE
from tests.support.state import get_account

CONFIRM, CANCEL = "/confirm-email/", "/cancel-email/"


def ask_address(
    services: Services,
    account_id: int,
    address: str,
    *,
    clock: Clock = database_now,
    grace: timedelta = GRACE,
) -> Account:
    """Ask for *address* as the owner's session does; return the account, on which it is pending."""
    account = get_account(services, account_id)
    with services.writing() as session:
        return profiles.update_profile(
            session,
            account_id,
            epoch=account.epoch,
            changes={"email": address},
            by=owner(account),
            grace=grace,
            clock=clock,
        )


def confirm_claims(services: Services, account: Account, *, now: datetime) -> Claims:
    """The claims of the link that is mailed to the pending address of *account* at *now*."""
    token = services.tokens.confirm_email(account, now=now)
    return services.tokens.read(token, CONFIRM_EMAIL, now=now)


def cancel_claims(services: Services, account: Account, *, now: datetime) -> Claims:
    """The claims of the link that is mailed to the address of today at *now*."""
    token = services.tokens.cancel_email(account, now=now)
    return services.tokens.read(token, CANCEL_EMAIL, now=now)


def is_email(text: str) -> bool:
    """Say whether an account can be given the address *text*."""
    return email_problem(text) is None


def change_address(
    services: Services,
    account_id: int,
    address: str,
    *,
    clock: Clock = database_now,
    grace: timedelta = GRACE,
) -> Account:
    """Ask for *address*, and have it confirmed by its mailbox and the password."""
    account = ask_address(services, account_id, address, clock=clock, grace=grace)
    with services.writing() as session:
        claims = confirm_claims(services, account, now=clock(session))
        return pending.take_effect(session, claims, grace=grace, clock=clock)


def mailed_path(text: str, page: str) -> str:
    """The path of the link to *page* in the text of a mail."""
    (path,) = re.findall(rf"https?://[^/\s]+({page}\S+)", text)
    return str(path)


def send_form(client: FlaskClient, path: str, **fields: str) -> TestResponse:
    """Open a mailed link in a browser of its own, and send the form of its page."""
    page = client.get(path, follow_redirects=True)
    key = re.search(r'name="form_key" value="([^"]+)"', page.text)
    if key is None:
        return page
    return client.post(page.request.path, data={"form_key": key[1], **fields})


def confirm_address(
    services: Services, client: FlaskClient, account_id: int, password: str = PASSWORD
) -> TestResponse:
    """Open the link that is mailed to the pending address, and enter *password* on its page."""
    with services.reading() as session:
        now = database_now(session)
    token = services.tokens.confirm_email(get_account(services, account_id), now=now)
    return send_form(client, CONFIRM + token, password=password)
