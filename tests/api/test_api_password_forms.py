"""One password, typed on two systems: it is the same wherever a password is taken."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from apiflask import APIFlask
from werkzeug.test import TestResponse

from tests.pages.conftest import follow as follow_link
from tests.pages.conftest import follow_mailed, mailed_token, reset_token
from tests.support.factories import Person, access_token, bearer, deactivate, services_of
from tests.support.state import belongings, events, get_account

# How most keyboards type them, and how file names and some programs of macOS have them.
PASSWORDS = {
    "an accent": "caf\u00e9 au lait, deux sucres",
    "Hangul": "\ud55c\uae00 \uc554\ud638 \ub450 \uac1c",
    "two marks on a letter": "m\u1eadt kh\u1ea9u c\u1ee7a t\u00f4i",
    "kana with a voice mark": "\u304c\u304e\u3050\u3052\u3054 \u30d1\u30d4\u30d7 otters",
    "with spaces around": "  caf\u00e9 au lait, deux sucres ",
    # 128 characters, and 337 where each is typed in its parts.
    "the longest": ("nine purple otters sing " + "\ud55c\uae00" * 52),
}
EMAIL = "dan@example.org"


def parts(text: str) -> str:
    return unicodedata.normalize("NFD", text)


Form = Callable[[str], str]


class Household:
    """Somebody with two systems, who signs up on one of them."""

    def __init__(self, app: APIFlask, password: str) -> None:
        self.app, self.password = app, password
        signed_up = self.post("/api/sign-up/", username="dan", email=EMAIL, password=password)
        assert signed_up.status_code == 201, signed_up.text
        self.id: int = signed_up.json["user"]["id"]  # type: ignore[index]
        row = get_account(services_of(app), self.id)
        self.person = Person(
            id=self.id, public_id=row.public_id, email=EMAIL, token="", avatar="", passwords=()
        )

    def post(self, path: str, headers: dict[str, str] | None = None, **body: str) -> TestResponse:
        return self.app.test_client().post(path, json=body, headers=headers)

    @property
    def stale(self) -> dict[str, str]:
        account = get_account(services_of(self.app), self.id)
        return bearer(access_token(services_of(self.app), account, fresh=False))

    def mailed(self) -> dict[str, str]:
        return bearer(mailed_token(self.app, self.person))

    def sign_in(self, typed: str) -> int:
        return self.post("/api/sign-in/", email=EMAIL, password=typed).status_code


@pytest.mark.parametrize(("here", "there"), [(str, parts), (parts, str)], ids=["NFC", "NFD"])
@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS)
def test_a_password_that_was_set_on_one_system_is_right_on_another_everywhere(
    app: APIFlask, bob: Person, password: str, here: Form, there: Form
) -> None:
    home, typed = Household(app, here(password)), there(password)
    spared = belongings(services_of(app), bob)
    base = f"/api/profile/{home.id}/"

    answers = {
        "sign in": home.sign_in(typed),
        "change the e-mail": app.test_client().patch(
            f"{base}update/",
            json={"email": EMAIL.upper(), "password": typed},
            headers=home.stale,
        ),
        "export": home.post(f"{base}export/", home.stale, password=typed),
        "change": home.post(f"{base}password/", home.stale, password=typed, new_password=typed),
        "delete": app.test_client().delete(
            f"{base}delete/", json={"password": typed}, headers=home.stale
        ),
        "sign in, deactivated": home.sign_in(typed),
        "export by the mailed token": home.post(f"{base}export/", home.mailed(), password=typed),
        "download on the page": follow_mailed(app, home.person).send(
            action="download", password=typed
        ),
        "reactivate": home.post("/api/profile/reactivate/", email=EMAIL, password=typed),
    }

    statuses = {
        name: got if isinstance(got, int) else got.status_code for name, got in answers.items()
    }
    assert statuses == {
        "sign in": 200,
        "change the e-mail": 200,
        "export": 200,
        "change": 200,
        "delete": 204,
        "sign in, deactivated": 403,
        "export by the mailed token": 200,
        "download on the page": 200,
        "reactivate": 200,
    }
    assert events(services_of(app), "confirmation.failed") == []
    assert belongings(services_of(app), bob) == spared


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS)
def test_a_password_that_was_reset_on_one_system_is_right_on_another(
    app: APIFlask, password: str
) -> None:
    home = Household(app, "nine purple otters sing")

    by_api = home.post(
        "/api/password-reset/confirm/",
        token=reset_token(app, home.person),
        new_password=parts(password),
    )
    after_api = home.sign_in(password)
    page = follow_link(app.test_client(), "/reset-password/", reset_token(app, home.person))
    by_page = page.send(new_password=parts(f"{password[:100]} too"))

    assert (by_api.status_code, after_api, by_page.status_code) == (200, 200, 200)
    assert home.sign_in(f"{password[:100]} too") == 200


def test_now_is_confirmed_from_another_system_as_well(app: APIFlask, bob: Person) -> None:
    password = PASSWORDS["Hangul"]
    home = Household(app, password)
    deactivate(services_of(app), home.id)
    spared = belongings(services_of(app), bob)

    wrong = home.post(
        f"/api/profile/{home.id}/purge/", home.mailed(), password=parts(password) + "x"
    )
    right = home.post(f"/api/profile/{home.id}/purge/", home.mailed(), password=parts(password))

    assert (wrong.status_code, right.status_code) == (403, 202)
    assert belongings(services_of(app), bob) == spared


@pytest.mark.parametrize(
    "other",
    [
        "caf\u00e9 au lait, deux sucres ",
        " caf\u00e9 au lait, deux sucres",
        "caf\u00e9\u00a0au lait, deux sucres",
        "cafe au lait, deux sucres",
        "CAF\u00c9 au lait, deux sucres",
    ],
)
def test_spaces_accents_and_case_are_a_part_of_a_password(app: APIFlask, other: str) -> None:
    home = Household(app, PASSWORDS["an accent"])

    statuses = [home.sign_in(other), home.sign_in(parts(other))]

    assert statuses == [401, 401]
    assert home.sign_in(PASSWORDS["an accent"]) == 200
