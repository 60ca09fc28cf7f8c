"""What every page has in common: who may send its forms, its headers, its errors, its logs."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from tests.conftest import NewApp
from tests.support.addresses import ask_address
from tests.support.factories import PASSWORD, Person, deactivate, make_person, run_sql, services_of
from tests.support.state import everything

from .conftest import (
    Browser,
    account_of,
    cancel_token,
    confirm_token,
    follow,
    follow_mailed,
    heading,
    mailed_token,
    reset_token,
)

SURE = {"action": "delete", "password": PASSWORD, "sure": "yes"}
ADDRESS_LINKS = (("/confirm-email/", confirm_token), ("/cancel-email/", cancel_token))
UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"


def follow_address_links(app: APIFlask, person: Person) -> list[Browser]:
    """The two pages about another address that *person*, whose account is active, has asked for."""
    ask_address(services_of(app), person.id, "new@example.org")
    return [follow(app.test_client(), path, token(app, person)) for path, token in ADDRESS_LINKS]


# Forms of other pages


def test_a_form_without_the_key_of_our_page_is_refused(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    for form in ({"action": "keep"}, {"action": "keep", "form_key": "ü"}, SURE):
        response = browser.client.post("/recover/", data=form)

        assert response.status_code == 403
        assert heading(response) == "Nothing was changed"
        assert '<a href="/recover/">' in response.text
    assert everything(services_of(app)) == before


def test_a_page_left_open_never_acts_on_the_account_of_another_link(
    app: APIFlask, ann: Person
) -> None:
    cid = make_person(services_of(app), "cid")
    deactivate(services_of(app), cid.id)
    browser = follow_mailed(app, ann)
    old_key = browser.form_key()
    follow(browser.client, "/recover/", mailed_token(app, cid))
    before = everything(services_of(app))

    response = browser.client.post("/recover/", data={"form_key": old_key, "action": "keep"})

    assert response.status_code == 403
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://["},
    ],
)
def test_a_form_that_another_site_sent_is_refused_even_with_the_key(
    app: APIFlask, ann: Person, headers: dict[str, str]
) -> None:
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    response = browser.send(headers, action="keep")

    assert response.status_code == 403
    assert heading(response) == "Nothing was changed"
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "null"},
        {"Origin": "http://localhost"},
        {"Origin": "https://accounts.example.org"},
    ],
)
def test_a_form_of_our_own_page_is_taken(new_app: NewApp, headers: dict[str, str]) -> None:
    app = new_app(PUBLIC_URL="https://accounts.example.org")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    client = app.test_client()
    token = mailed_token(app, ann)
    client.set_cookie("__Host-recover", token)

    response = Browser(client, "/recover/", token).send(headers, action="keep")

    assert response.status_code == 200
    assert account_of(app, ann).is_active


def test_a_form_without_the_cookie_is_refused(app: APIFlask, ann: Person) -> None:
    key = follow_mailed(app, ann).form_key()
    before = everything(services_of(app))

    response = app.test_client().post("/recover/", data={"form_key": key, "action": "keep"})

    assert response.status_code == 400
    assert everything(services_of(app)) == before


# Headers


def test_every_page_is_shut_to_everything_but_itself(
    app: APIFlask, ann: Person, bob: Person
) -> None:
    browser = follow_mailed(app, ann)
    confirm, cancel = follow_address_links(app, bob)
    reset = follow(app.test_client(), "/reset-password/", reset_token(app, ann))

    answers = [
        browser.client.get(f"/recover/{browser.token}"),
        browser.open(),
        browser.client.post("/recover/", data={"action": "keep"}),
        browser.send(action="delete"),
        browser.send(action="nonsense"),
        reset.open(),
        reset.send(new_password=""),
        app.test_client().get("/recover/abc"),
        app.test_client().get("/recover/"),
        browser.send(action="keep"),
        browser.open(),
        confirm.open(),
        confirm.send(password="wrong"),
        cancel.open(),
        cancel.send(),
        cancel.open(),
    ]

    assert [one.status_code for one in answers] == [
        303, 200, 403, 400, 400, 200, 400, 404, 400, 200, 409, 200, 403, 200, 200, 410,
    ]  # fmt: skip
    for answer in answers:
        assert answer.headers["Content-Security-Policy"] == (
            "default-src 'none'; object-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Robots-Tag"] == "noindex"
        assert answer.mimetype == "text/html"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_files_of_the_pages_are_ours_and_may_be_kept(app: APIFlask, ann: Person) -> None:
    page = follow_mailed(app, ann).open().text
    files = re.findall(r'(?:src|href)="(/pages/[^"]+)"', page)

    assert sorted(files) == ["/pages/icon.svg", "/pages/local-time.js", "/pages/style.css"]
    for file in files:
        response = app.test_client().get(file)
        assert response.status_code == 200
        assert "no-store" not in response.headers["Cache-Control"]
        assert response.headers["ETag"]
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        response.close()


def test_a_page_loads_nothing_from_elsewhere_and_has_no_code_in_its_text(
    app: APIFlask, ann: Person
) -> None:
    page = follow_mailed(app, ann).open().text

    assert not re.search(r"(src|href|action)=\"(?!/pages/|/recover/|#)", page)
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src=)|javascript:", page)


def test_passwords_are_masked_and_left_to_password_managers(app: APIFlask, ann: Person) -> None:
    """ASVS 5.0, 6.2.6 and 6.2.7: nothing of ours keeps anybody from pasting one."""
    reset = follow(app.test_client(), "/reset-password/", reset_token(app, ann))
    pages = [follow_mailed(app, ann).open().text, reset.open().text]
    script = app.test_client().get("/pages/local-time.js", buffered=True).text

    fields = [field for page in pages for field in re.findall(r"<input[^>]*password[^>]*>", page)]

    assert len(fields) == 3
    for field in fields:
        assert 'type="password"' in field
        assert re.search(r'autocomplete="(current|new)-password"', field)
        assert not re.search(r"readonly|maxlength|pattern|onpaste", field)
    assert not re.search(r"paste|addEventListener|input|Storage|innerHTML|cookie", script)


def test_no_answer_but_the_cookie_hands_the_token_over(app: APIFlask, ann: Person) -> None:
    """ASVS 5.0, 3.3.4: what a script cannot read in the cookie, it finds nowhere else."""
    mailed = follow_mailed(app, ann)
    reset = follow(app.test_client(), "/reset-password/", reset_token(app, ann))

    for browser in (mailed, reset):
        for answer in (browser.open(), browser.send(action="nonsense", new_password="short")):
            headers = [text for name, text in answer.headers if name != "Set-Cookie"]
            assert browser.token not in answer.text + "".join(headers)


# Errors


def test_without_the_database_a_page_says_so_and_when_to_come_back(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    down = new_app(DATABASE_URL=UNREACHABLE)
    for path, token in (
        ("/recover/", mailed_token(app, ann)),
        ("/reset-password/", reset_token(app, ann)),
    ):
        browser = follow(down.test_client(), path, token)

        response = browser.open()

        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert heading(response) == "We cannot answer at the moment"
        assert response.headers["Cache-Control"] == "no-store"


def test_a_fault_of_ours_is_a_page_without_its_text(
    new_app: NewApp, postgresql_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = new_app(DATABASE_URL=postgresql_url)
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    browser = follow_mailed(app, ann)
    run_sql(services_of(app), "ALTER TABLE accounts RENAME COLUMN username TO nickname")

    response = browser.open()

    assert response.status_code == 500
    assert heading(response) == "Something went wrong on our side"
    assert "username" not in response.text
    logged = capsys.readouterr().out
    assert '"error": "ProgrammingError"' in logged
    assert browser.token not in logged
    assert "ann@" not in logged


def test_too_large_a_form_is_refused_with_a_page(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)

    response = browser.send(action="delete", password="x" * 100_000, sure="yes")

    assert response.status_code == 413
    assert heading(response) == "Nothing was changed"


def test_a_very_long_password_is_refused_unread(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    response = browser.send(action="delete", password="é\0" + "x" * 20_000, sure="yes")

    assert response.status_code == 400
    assert "at most 128 characters" in response.text
    assert everything(services_of(app)) == before


# Logs


def test_no_log_holds_a_token_a_password_or_the_path_they_were_in(
    app: APIFlask, ann: Person, bob: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = follow_mailed(app, ann)
    key = browser.form_key()
    browser.send(action="delete", password="a wrong secret", sure="yes")
    app.test_client().get("/recover/" + browser.token[:-3])
    reset = follow(app.test_client(), "/reset-password/", reset_token(app, ann))
    reset.send(new_password="short")
    confirm, cancel = follow_address_links(app, bob)
    confirm.send(password="a wrong secret")
    cancel.send()

    logged = capsys.readouterr().out

    lines = [json.loads(line) for line in logged.splitlines()]
    routes = Counter(line.get("route") for line in lines)
    assert routes["/recover/<path:token>"] == 2
    assert routes["/reset-password/<path:token>"] == 1
    assert routes["/confirm-email/<path:token>"] == routes["/cancel-email/<path:token>"] == 1
    tokens = [one.token[-20:] for one in (browser, reset, confirm, cancel)]
    for secret in (*tokens, browser.token[:40], key, "wrong secret", "new@"):
        assert secret not in logged


# For everybody


class _Outline(HTMLParser):
    """The elements of a page with their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_page_has_one_heading_landmarks_labels_and_names_that_lead_somewhere(
    app: APIFlask, ann: Person, bob: Person, client: FlaskClient
) -> None:
    browser = follow_mailed(app, ann)
    confirm, cancel = follow_address_links(app, bob)
    reset = follow(app.test_client(), "/reset-password/", reset_token(app, ann))
    pages = [
        browser.open(),
        browser.send(action="delete"),
        browser.send(**{**SURE, "password": "wrong"}),
        reset.open(),
        reset.send(new_password="short"),
        client.get("/recover/"),
        browser.send(action="keep"),
        confirm.open(),
        confirm.send(password="wrong"),
        cancel.open(),
        cancel.send(),
    ]

    for page in pages:
        outline = _Outline(page.text)
        ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert [one["lang"] for one in outline.all("html")] == ["en"]
        assert len(outline.all("main")) == len(outline.all("h1")) == 1
        labelled = {one["for"] for one in outline.all("label")}
        for field in outline.all("input"):
            if field["type"] != "hidden":
                assert field["id"] in labelled
        for tag, attributes in outline.elements:
            for name in ("aria-describedby", "aria-labelledby"):
                assert set((attributes.get(name) or "").split()) <= set(ids), tag
            href = attributes.get("href") or ""
            assert not href.startswith("#") or href[1:] in ids


def test_a_page_needs_no_account_to_be_read_by_a_robot_that_keeps_no_cookies(
    app: APIFlask, ann: Person
) -> None:
    response = app.test_client(use_cookies=False).get(
        f"/recover/{mailed_token(app, ann)}", follow_redirects=True
    )

    assert response.status_code == 400
    assert heading(response) == "Open the link in your mail"
