"""The matrix: every kind of token, by what it was proved, against every endpoint; and every way on.

``ROWS`` has a row for each route and method, with a letter for each column of ``COLUMNS``: what that
token opens there. A route without a row fails. Then, from each token behind which no password
stands, every call is made, and every token that comes of it is followed to its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import pytest
from apiflask import APIFlask
from werkzeug.test import TestResponse

from accountsvc.accounts import exports
from accountsvc.accounts.credentials import PasswordHasher
from accountsvc.db.models import Account, SavedPassword
from accountsvc.tokens import ACCESS, KINDS, REFRESH, Claims
from tests.conftest import NewApp
from tests.support.addresses import ask_address
from tests.support.factories import (
    PASSWORD,
    bearer,
    deactivate,
    insert_account,
    make_person,
    new_name,
    place_hold,
    services_of,
)
from tests.support.moments import GRACE, now
from tests.support.state import belongings, get_account, read_account, rows_of

FRESH_MINUTES = timedelta(minutes=15)
AGED = FRESH_MINUTES + timedelta(minutes=1)
NEW_PASSWORD = "nine purple otters sing"
MODES = ("fresh", "password", "none")

# Each column is a token, and by what it was proved. The first five are of an active account, the
# next five of one in its grace period, the next three of the staff, who act on such a one, and the
# last two of an active account that has asked for another address.
COLUMNS = (
    "access, straight from the password",
    "access, from a refresh",
    "access, straight from a password of 16 minutes ago",
    "refresh",
    "password reset, mailed",
    "recovery, from a sign-in",
    "recovery, from a DELETE by a fresh token and the password",
    "recovery, from a DELETE by an old session",
    "mailed",
    "password reset, mailed in the grace period",
    "staff, straight from the password",
    "staff, straight from a password of 16 minutes ago",
    "staff, from a refresh",
    "confirm email, mailed to the pending address",
    "cancel email, mailed to the address of today",
)
IN_GRACE = COLUMNS[5:10]
# What a session says that is older than the claim: it was made by a process of a version before.
LEGACY = ("access of before the claim, from a refresh", "refresh of before the claim")
# No password was proved for these within the window, or not for this very token.
WITHOUT_PASSWORD = (
    "access, from a refresh",
    "access, straight from a password of 16 minutes ago",
    "refresh",
    "password reset, mailed",
    "recovery, from a DELETE by an old session",
    "mailed",
    "password reset, mailed in the grace period",
    "confirm email, mailed to the pending address",
    "cancel email, mailed to the address of today",
    *LEGACY,
)

# Which token, whether fresh, and whether without a time of a password.
Kind = tuple[str, bool, bool]

# What a letter says of an answer.
OPENS, SESSION, CONFIRM, DEAD, HIDDEN, DENIED, WRONG, SAME = "oscxnfw-"


class Row(NamedTuple):
    """A call with a token at *at*, and a letter for each column, or those by the setting.

    ``at`` is ``bearer``, ``path``, ``cookie NAME`` or ``body NAME``.
    """

    method: str
    rule: str
    opens: str | Mapping[str, str]
    body: Mapping[str, object] | None = None
    at: str = "bearer"
    headers: Mapping[str, str] = {}

    def letters(self, mode: str) -> str:
        text = self.opens if isinstance(self.opens, str) else self.opens[mode]
        return text.replace(" ", "") if text != SAME else SAME * len(COLUMNS)


ID = "/api/profile/<int:user_id>"
VAULT = "/api/view-all-saved-passwords/"
STAFF_READS = "fffxx xxxxx ooo xx"
STAFF_WRITES = "fffxx xxxxx occ xx"
ANY_SESSION = "oooxx xxxxx ooo xx"
EXPORT = "occxx ooccx fff xx"
ENTRY = {"name_pages": "a", "url": "b", "password_saved": "c"}
REPRESENTED = {"Prefer": "return=representation"}
ANY_STATE = {"If-Match": "*"}
RESET = {"new_password": NEW_PASSWORD}
GUESS = {"password": "a guess"}
NUMBER = "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0"

ROWS = (
    Row("POST", "/api/sign-up/", SAME, {}),
    Row("POST", "/api/sign-in/", SAME, {}),
    Row("POST", "/api/sign-out/", ANY_SESSION),
    Row("POST", "/api/token/refresh/", "xxxsx xxxxx xxx xx", {}, "body refresh"),
    Row("POST", "/api/password-reset/", SAME, {"email": "nobody@example.org"}),
    Row("POST", "/api/password-reset/confirm/", "xxxxo xxxxo xxx xx", RESET, "body token"),
    Row("GET", "/api/profile/", ANY_SESSION),
    Row("POST", "/api/profile/", ANY_SESSION),
    Row("PUT", f"{ID}/update/", "oooxx xxxxx fff xx", {"first_name": "Bo"}),
    Row("PATCH", f"{ID}/update/", "occxx xxxxx fff xx", {"email": "thief@example.net"}),
    Row(
        "POST",
        f"{ID}/password/",
        "wwwxx xxxxx fff xx",
        {"password": "a guess", "new_password": NEW_PASSWORD},
    ),
    Row("POST", "/api/save-passwords/", ANY_SESSION, ENTRY),
    Row("GET", VAULT, ANY_SESSION),
    Row("PUT", f"{VAULT}<int:entry_id>/update/", "oooxx xxxxx nnn xx", ENTRY),
    Row("DELETE", f"{VAULT}<int:entry_id>/delete/", "oooxx xxxxx nnn xx"),
    Row(
        "DELETE",
        f"{ID}/delete/",
        {
            "fresh": "occxx xxxxx occ xx",
            "password": "cccxx xxxxx ccc xx",
            "none": "oooxx xxxxx occ xx",
        },
        headers=REPRESENTED,
    ),
    Row("POST", "/api/profile/reactivate/", "xxxxx ssoox xxx xx", {}, "body token"),
    Row("POST", f"{ID}/reactivate/", STAFF_WRITES, {"reason": "asked by letter"}),
    Row("GET", f"{ID}/deletion/", "nnnxx oooox ooo xx"),
    Row("PATCH", f"{ID}/deletion/", STAFF_WRITES, {"reason": "a note"}, headers=ANY_STATE),
    Row("POST", f"{ID}/purge/", "nnnxx xxxcx occ xx", {"confirm": "<username>"}),
    Row("GET", f"{ID}/export/", EXPORT),
    Row("POST", f"{ID}/export/", EXPORT, {}),
    Row("GET", f"{ID}/holds/", STAFF_READS),
    Row("POST", f"{ID}/holds/", STAFF_WRITES, {"reason": "case 12"}),
    Row("DELETE", f"{ID}/holds/<int:hold_id>/", STAFF_WRITES),
    Row("GET", "/api/admin/deletions/", STAFF_READS),
    Row("GET", "/api/admin/audit/", STAFF_READS),
    Row("GET", "/recover/<path:token>", "nnnnn nnnon nnn nn", at="path"),
    Row("GET", "/recover/", "nnnnn nnnon nnn nn", at="cookie recover"),
    Row("POST", "/recover/", "nnnnn nnnon nnn nn", {"action": "keep"}, "cookie recover"),
    Row("GET", "/reset-password/<path:token>", "nnnno nnnno nnn nn", at="path"),
    Row("GET", "/reset-password/", "nnnno nnnno nnn nn", at="cookie reset_password"),
    Row("POST", "/reset-password/", "nnnno nnnno nnn nn", RESET, "cookie reset_password"),
    Row("GET", "/confirm-email/<path:token>", "nnnnn nnnnn nnn on", at="path"),
    Row("GET", "/confirm-email/", "nnnnn nnnnn nnn on", at="cookie confirm_email"),
    Row("POST", "/confirm-email/", "nnnnn nnnnn nnn fn", GUESS, "cookie confirm_email"),
    Row("GET", "/cancel-email/<path:token>", "nnnnn nnnnn nnn no", at="path"),
    Row("GET", "/cancel-email/", "nnnnn nnnnn nnn no", at="cookie cancel_email"),
    Row("POST", "/cancel-email/", "nnnnn nnnnn nnn no", {}, "cookie cancel_email"),
    Row("GET", "/keep-account/", SAME),
    Row("POST", "/keep-account/", SAME),
    # Whoever has the number of a receipt may read it, whatever else they have.
    Row("GET", "/api/receipts/<number>/", SAME),
    Row("GET", "/.well-known/accountsvc-keys.json", SAME),
    Row("GET", "/receipts/", SAME),
    Row("GET", "/receipts/<number>/", SAME),
    Row("GET", "/api/response-password/", SAME),
    Row("GET", "/api/openapi.json", SAME),
    Row("GET", "/api/docs/", SAME),
    Row("GET", "/api/docs/<name>", SAME),
    Row("GET", "/media/avatars/<key>", SAME),
    Row("GET", "/pages/<path:filename>", SAME),
    Row("GET", "/", SAME),
    Row("GET", "/healthz", SAME),
    Row("GET", "/readyz", SAME),
    Row("GET", "/statusz", SAME),
    Row("GET", "/metrics", SAME),
)


DELETE, COME_BACK = (
    next(row for row in ROWS if (row.method, row.rule) == call)
    for call in (("DELETE", f"{ID}/delete/"), ("POST", "/api/profile/reactivate/"))
)
# Calls, one after the other, each with the kind of the token that was taken from its answer.
Way = tuple[tuple[Row, Kind], ...]


@dataclass(frozen=True)
class Held:
    """A token in somebody's hands, and the account on which it is to be used."""

    token: str
    account: Account
    entry: int


@cache
def password_hash() -> str:
    return PasswordHasher("cheap").hash(PASSWORD)


class World:
    """One application under one setting, and tokens, got as people get them as far as time allows."""

    def __init__(self, app: APIFlask, mode: str) -> None:
        self.app, self.mode, self.client = app, mode, app.test_client()
        self.services = services_of(app)
        self.bystander = make_person(self.services, "bob")
        self.sue = insert_account(
            self.services, "sue", password_hash=password_hash(), is_staff=True
        )

    def hold(self, column: str) -> Held:
        """Make an account, and the token of *column* for it or, of the staff's, beside it."""
        is_away = column in IN_GRACE and "DELETE" not in column
        is_staff = column.startswith("staff")
        purge_at = now(self.services).replace(microsecond=0) + GRACE
        account = insert_account(
            self.services,
            new_name("ann"),
            password_hash=password_hash(),
            passwords=1,
            purge_at=purge_at if is_away or is_staff else None,
        )
        (entry,) = rows_of(self.services, SavedPassword, SavedPassword.account_id == account.id)
        owner = get_account(self.services, self.sue.id) if is_staff else account
        token = self._token(column.replace("staff", "access"), owner)
        return Held(token, get_account(self.services, account.id), entry.id)

    def _token(self, column: str, account: Account) -> str:
        tokens, moment = self.services.tokens, now(self.services)
        old = moment - AGED
        match column.partition(",")[0].strip(), column.partition(",")[2].strip():
            case "access", "straight from the password":
                return self._session(account)["access"]
            case "access", "from a refresh":
                return self._refreshed(self._session(account)["refresh"])
            case "access", _:
                return tokens.access(account, now=old, fresh=True)
            case "refresh", _:
                return tokens.refresh(account, now=old, password_at=old)
            case "access of before the claim", _:
                return tokens.access(account, now=moment, fresh=False)
            case "refresh of before the claim", _:
                return tokens.refresh(account, now=moment)
            case "password reset", _:
                return tokens.password_reset(account, now=moment)
            case "confirm email", _:
                return tokens.confirm_email(self._asking(account), now=moment)
            case "cancel email", _:
                return tokens.cancel_email(self._asking(account), now=moment)
            case "mailed", _:
                return tokens.mailed(account, now=moment)
            case "recovery", "from a sign-in":
                return self._signed_in(account, 403)["recovery_token"]
            case "recovery", "from a DELETE by a fresh token and the password":
                return self._deleted(account, self._session(account)["access"], PASSWORD)
            case "recovery", "from a DELETE by an old session" if self.mode == "none":
                return self._deleted(account, tokens.access(account, now=old, fresh=True), None)
            case "recovery", "from a DELETE by an old session":
                # Under these settings nobody gets one: such a session has to give the password.
                away = deactivate(self.services, account.id)
                return tokens.recovery(away, now=moment, password_at=old)
        raise AssertionError(f"no such column: {column}")

    def _asking(self, account: Account) -> Account:
        """Have *account* ask for another address, unless it does, and return it as it is then."""
        ask_address(self.services, account.id, "elsewhere@example.net")
        return get_account(self.services, account.id)

    def _signed_in(self, account: Account, status: int) -> Any:
        credentials = {"email": account.email, "password": PASSWORD}
        response = self.client.post("/api/sign-in/", json=credentials)
        assert response.status_code == status, response.text
        return response.json

    def _session(self, account: Account) -> Any:
        return self._signed_in(account, 200)

    def _refreshed(self, token: str) -> str:
        response = self.client.post("/api/token/refresh/", json={"refresh": token})
        assert response.json is not None
        return str(response.json["access"])

    def _deleted(self, account: Account, token: str, password: str | None) -> str:
        response = self.client.delete(
            f"/api/profile/{account.id}/delete/",
            headers={**bearer(token), **REPRESENTED},
            json=None if password is None else {"password": password},
        )
        assert response.json is not None
        return str(response.json["recovery_token"])

    def follow(self, seed: str, way: Way) -> Held:
        """Hold the token that came of the calls of *way*, beginning with one of column *seed*."""
        held = self.hold(seed)
        for row, kind in way:
            answered = tokens_in(self.call(row, held))
            token = next(token for token in answered if self.kind(token) == kind)
            held = Held(token, get_account(self.services, held.account.id), held.entry)
        return held

    def claims(self, token: str) -> Claims:
        kind = self.services.tokens.kind_of(token)
        claims = None if kind is None else self.services.tokens.was(token, kind)
        assert claims is not None
        return claims

    def kind(self, token: str) -> Kind:
        """All by which tokens differ, but for whose they are and when they were made."""
        claims = self.claims(token)
        return claims.kind, claims.fresh, claims.password_at is None

    def call(self, row: Row, held: Held | None) -> TestResponse:
        """Make the call of *row* with the token of *held*; None: with none, on nothing."""
        response = self._call(row, held)
        response.get_data()
        response.close()
        return response

    def _call(self, row: Row, held: Held | None) -> TestResponse:
        hold_id = 1
        if held is not None and "hold_id" in row.rule and not held.account.is_active:
            hold_id = place_hold(self.services, held.account.id)
        ids: dict[str, object] = {"user_id": 0, "entry_id": 0, "hold_id": hold_id}
        ids |= {"name": "docs.css", "key": "x.webp", "filename": "pages.css", "token": "x"}
        ids["number"] = NUMBER
        headers, body = dict(row.headers), None if row.body is None else dict(row.body)
        where, _, name = row.at.partition(" ")
        if held is not None:
            ids |= {"user_id": held.account.id, "entry_id": held.entry, "token": held.token}
            if body is not None and "confirm" in body:
                body["confirm"] = held.account.username
            if where == "bearer":
                headers |= bearer(held.token)
            elif where == "body":
                body = {**(body or {}), name: held.token}
        path = re.sub(r"<(?:[^<:]+:)?([^>]+)>", lambda found: str(ids[found[1]]), row.rule)
        client = self.app.test_client()
        if where != "cookie" or held is None:
            return client.open(path, method=row.method, headers=headers, json=body)
        client.set_cookie(name, held.token, path=path)
        if row.method == "GET":
            return client.get(path)
        form_key = re.search(r'name="form_key" value="([^"]+)"', client.get(path).text)
        form = {**(body or {}), "form_key": form_key[1] if form_key else "x"}
        return client.post(path, data=form)


def letter(response: TestResponse) -> str:
    """What the answer says, as ``ROWS`` has it; of any other its status and text."""
    body = response.json if response.is_json else None
    code = body.get("code") if isinstance(body, dict) else None
    if response.status_code < 400:
        return SESSION if isinstance(body, dict) and "access" in body else OPENS
    letters = {
        (401, "confirmation_required"): CONFIRM,
        (401, "token_not_valid"): DEAD,
        (403, None): DENIED,
        (403, "invalid_password"): WRONG,
        (404, None): HIDDEN,
    }
    return letters.get((response.status_code, code), f"{response.status_code} {response.text}")


def tokens_in(response: TestResponse) -> list[str]:
    """The tokens of an answer, also of a refusal."""
    body = response.json if response.is_json else None
    named = ("access", "refresh", "recovery_token")
    return [body[name] for name in named if name in body] if isinstance(body, dict) else []


def expectations(mode: str) -> list[str]:
    """The letters of each column, in the order of the rows."""
    letters = [row.letters(mode) for row in ROWS]
    return ["".join(row[column] for row in letters) for column in range(len(COLUMNS))]


def changes(row: Row, response: TestResponse) -> bool:
    """Whether the call may have changed something, so that the next one needs another account."""
    return row.method != "GET" and response.status_code < 400


def new_world(new_app: NewApp, mode: str) -> World:
    return World(new_app(DELETION_CONFIRMATION=mode, FRESH_TOKEN_MINUTES="15"), mode)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a token opens is decided above the database."""
    return sqlite_url


def test_every_route_has_a_row(new_app: NewApp) -> None:
    app = new_app()

    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert {(row.method, row.rule) for row in ROWS} == routes, (
        "add a row to ROWS for each route: what each kind of token opens there"
    )
    assert {len(row.letters(mode)) for row in ROWS for mode in MODES} == {len(COLUMNS)}
    assert {column.partition(",")[0].split(" of ")[0] for column in COLUMNS} == {
        kind.replace("_", " ") for kind in KINDS
    } | {"staff"}


@pytest.mark.parametrize("mode", MODES)
def test_each_kind_of_token_opens_at_each_endpoint_what_the_matrix_says(
    new_app: NewApp, mode: str
) -> None:
    world = new_world(new_app, mode)
    before = belongings(world.services, world.bystander)

    wrong = []
    for column, expected in zip(COLUMNS, expectations(mode), strict=True):
        held = world.hold(column)
        for row, wanted in zip(ROWS, expected, strict=True):
            response = world.call(row, held)
            found = letter(response)
            if wanted == SAME:
                to_nobody = world.call(row, None)
                found = SAME if response.status_code == to_nobody.status_code else found
            if found != wanted:
                wrong.append((column, row.method, row.rule, f"{found} and not {wanted}"))
            if changes(row, response):
                held = world.hold(column)

    assert wrong == []
    assert belongings(world.services, world.bystander) == before


@pytest.mark.parametrize("seed", WITHOUT_PASSWORD)
@pytest.mark.parametrize("mode", MODES)
def test_no_path_leads_from_a_token_without_a_password_to_more(
    new_app: NewApp, mode: str, seed: str
) -> None:
    """To a fresh token, an export, the vault of a deactivated account, or another address.

    Every call is made with each kind of token that came of the calls before, without a password.
    """
    world = new_world(new_app, mode)
    before = belongings(world.services, world.bystander)

    known = {world.kind(world.hold(seed).token)}
    ways: list[Way] = [()]
    for way in ways:
        held = world.follow(seed, way)
        for row in ROWS:
            response = world.call(row, held)
            assert_opened_nothing(world, held, row, response)
            for kind in {world.kind(token) for token in tokens_in(response)} - known:
                known.add(kind)
                ways.append((*way, (row, kind)))
            if changes(row, response):
                held = world.follow(seed, way)

    assert len(ways) == len(known)
    assert belongings(world.services, world.bystander) == before


def assert_opened_nothing(world: World, held: Held, row: Row, response: TestResponse) -> None:
    where = f"{row.method} {row.rule} with {world.kind(held.token)}"
    assert response.mimetype != exports.CONTENT_TYPE, f"an export by {where}"
    assert row.rule != VAULT or response.status_code != 200 or held.account.is_active, where
    for token in tokens_in(response):
        assert not world.claims(token).fresh, f"a fresh token by {where}"
    account = read_account(world.services, held.account.id)
    assert account is not None
    assert account.email == held.account.email, f"another address by {where}"


def test_the_paths_are_long_enough_to_find_what_a_password_opens(new_app: NewApp) -> None:
    """The same search from a password: it goes on, and finds what the others must not."""
    world = new_world(new_app, "none")
    way: Way = ()

    deleted = world.call(DELETE, world.follow(COLUMNS[0], way))
    way = ((DELETE, world.kind(tokens_in(deleted)[0])),)
    back = world.call(COME_BACK, world.follow(COLUMNS[0], way))

    assert [world.kind(token) for token in tokens_in(back)] == [
        (ACCESS, True, False),
        (REFRESH, False, False),
    ]
    with pytest.raises(AssertionError, match="a fresh token by"):
        assert_opened_nothing(world, world.follow(COLUMNS[0], way), COME_BACK, back)
