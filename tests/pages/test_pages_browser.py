"""The pages in a real browser: walked with and without JavaScript, by keyboard, on a phone, and measured."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from playwright.sync_api import Browser, BrowserContext, Page, expect
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from accountsvc.outbox import notices
from tests.support.addresses import ask_address, mailed_path
from tests.support.browser import launched
from tests.support.factories import (
    PASSWORD,
    Person,
    deactivate,
    deliver_after,
    dispose,
    make_app,
    make_due,
    make_person,
    services_of,
)
from tests.support.moments import now
from tests.support.receipts import erase
from tests.support.smtp import Inbox, smtp_server, text_of
from tests.support.state import belongings, effects, everything

from .conftest import account_of, cancel_token, confirm_token, mailed_token, reset_token

# What the eye can tell apart: of every text its colour against the ground below it; of every edge that
# shows where a field or a button is, its colour against the ground around it (WCAG 2.2, 1.4.3, 1.4.11).
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = rgba(colour).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const name = `${element.tagName.toLowerCase()}.${element.className.baseVal ?? element.className}`;
    if (says) found.push({ what: `text of ${name}`, ratio: ratio(style.color, ground(element)), least: 4.5 });
    if (element.matches("input[type=password]"))
      found.push({ what: `edge of ${name}`, ratio: ratio(style.borderTopColor, ground(element.parentElement)), least: 3 });
    if (element.matches("button")) {
      const edge = rgba(style.borderTopColor)[3] ? style.borderTopColor : style.backgroundColor;
      found.push({ what: `edge of ${name}`, ratio: ratio(edge, ground(element.parentElement)), least: 3 });
    }
  }
  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  found.push({ what: "focus ring", ratio: ratio(accent, ground(document.querySelector("main"))), least: 3 });
  return found;
}"""

SHIFTS = """() => new Promise((resolve) => {
  let sum = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => { sum += entry.value; }))
    .observe({ type: "layout-shift", buffered: true });
  requestAnimationFrame(() => setTimeout(() => resolve(sum), 100));
})"""


expect.set_options(timeout=30_000)


class _Quiet(WSGIRequestHandler):
    # The development server's own access log would hold the token.
    def log(self, type: str, message: str, *args: object) -> None:
        pass


@contextmanager
def served(wsgi: Any, host: str = "127.0.0.1") -> Iterator[str]:
    def whole(environ: Any, start_response: Any) -> list[bytes]:
        # This server does not close what it was sending to a window that is closed meanwhile.
        with closing(wsgi(environ, start_response)) as pieces:
            return [b"".join(pieces)]

    server = make_server(host, 0, whole, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{host}:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser
        browser.close()


@dataclass(frozen=True)
class Site:
    """The application behind a real server, and the links that it mailed."""

    app: APIFlask
    url: str

    def mailed_link(self, person: Person) -> str:
        return f"{self.url}/recover/{mailed_token(self.app, person)}"

    def reset_link(self, person: Person) -> str:
        return f"{self.url}/reset-password/{reset_token(self.app, person)}"


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Site]:
    app = make_app(sqlite_url, tmp_path)
    with served(app) as url:
        yield Site(app, url)
    dispose(app)


@pytest.fixture
def ann(site: Site) -> Person:
    """Who has deleted her account."""
    person = make_person(services_of(site.app), "ann")
    deactivate(services_of(site.app), person.id)
    return person


@contextmanager
def window(chromium: Browser, **options: Any) -> Iterator[Page]:
    """A window of a browser without a past, in which no page may break its own policy."""
    context: BrowserContext = chromium.new_context(**options)
    context.set_default_timeout(30_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda line: complaints.append(line.text) if "Content Security" in line.text else None,
    )
    yield page
    context.close()
    assert complaints == []


def test_the_mailed_link_is_walked_to_the_sign_in_and_a_second_visit_says_that_it_is_used(
    chromium: Browser, site: Site, ann: Person
) -> None:
    link = site.mailed_link(ann)
    with window(chromium) as page:
        page.goto(link)
        assert page.url == f"{site.url}/recover/"
        expect(page).to_have_title("Your account will be deleted")

        page.get_by_role("button", name="Keep my account").click()

        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is back")
        signed_in = page.request.post(
            f"{site.url}/api/sign-in/", data={"email": ann.email, "password": PASSWORD}
        )
        assert signed_in.status == 200
        page.goto(link)
        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is active")
        expect(page.get_by_role("main")).to_contain_text("used already")
        assert page.evaluate("history.length") <= 4
        assert page.evaluate("document.cookie") == ""


def test_the_mails_of_a_whole_grace_period_and_the_link_in_the_first(
    chromium: Browser, sqlite_url: str, tmp_path: Path
) -> None:
    """Over SMTP, with a server that is away for a while, and a clock that is moved on."""
    inbox = Inbox()
    with smtp_server(inbox) as port:
        app = make_app(sqlite_url, tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}/?tls=none")
        with served(app) as url, window(chromium) as page:
            ann = make_person(services_of(app), "ann")

            def ask(method: str, path: str, **options: Any) -> int:
                return page.request.fetch(f"{url}/api/{path}", method=method, **options).status

            # when: she leaves while the mail server is away, and it comes back
            assert ask("DELETE", f"profile/{ann.id}/delete/", headers=ann.auth) == 204
            inbox.answers["MAIL"] = "451 later"
            deliver_after(services_of(app), timedelta())
            inbox.answers.clear()
            # Soon: the link may not be from the future.
            deliver_after(services_of(app), timedelta(seconds=20))
            deliver_after(services_of(app), timedelta(seconds=40))
            # and a reminder is due
            assert len(effects(services_of(app), notices.REMINDER)) == 2
            deliver_after(services_of(app), timedelta(days=8))
            deliver_after(services_of(app), timedelta(days=9))

            # then
            scheduled, reminder = (str(one["Subject"]) for one in inbox.messages)
            assert scheduled.startswith("Your account will be deleted on ")
            assert reminder.startswith("Reminder: ")
            assert len(effects(services_of(app), notices.REMINDER)) == 1

            # when
            (link,) = re.findall(r"https?://\S+/(recover/\S+)", text_of(inbox.messages[0]))
            page.goto(f"{url}/{link}")
            page.get_by_role("button", name="Keep my account").click()

            # then
            expect(page.get_by_role("heading", level=1)).to_have_text("Your account is back")
            known = {"email": ann.email, "password": PASSWORD}
            assert ask("POST", "sign-in/", data=known) == 200
            page.goto(f"{url}/{link}")
            expect(page.get_by_role("main")).to_contain_text("used already")
            deliver_after(services_of(app), timedelta(minutes=1))
            deliver_after(services_of(app), timedelta(days=20))

            # when: she leaves again, and for good
            make_due(services_of(app), ann)
            assert services_of(app).sweep().purged == 1
            deliver_after(services_of(app), timedelta(minutes=1))

            # then
            subjects = [str(one["Subject"]) for one in inbox.messages[2:]]
            assert subjects == ["Your account is active again", "Your account has been deleted"]
            assert {str(one["To"]) for one in inbox.messages} == {ann.email}
        dispose(app)


def test_the_page_of_the_wire_contract_shows_every_operation_and_asks_no_other_site(
    chromium: Browser, site: Site
) -> None:
    with window(chromium) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        page.goto(f"{site.url}/api/docs/")

        paths = page.request.get(f"{site.url}/api/openapi.json").json()["paths"]
        operations = sum(len(methods) for methods in paths.values())
        expect(page.locator(".opblock")).to_have_count(operations)
        page.locator(".opblock-delete").filter(has_text="/delete/").first.click()
        expect(page.get_by_text("Deactivate an account at once").first).to_be_visible()
        assert {one for one in asked if not one.startswith((site.url, "data:"))} == set()
        assert page.request.get(f"{site.url}/api/docs/../../setup.cfg").status == 404
        assert page.request.get(f"{site.url}/api/docs/nothing.js").status == 404


def test_a_link_that_is_clicked_in_a_webmail_opens(
    chromium: Browser, site: Site, ann: Person
) -> None:
    link = site.mailed_link(ann)

    @Request.application
    def webmail(_request: Request) -> Response:
        return Response(f'<a href="{link}">Keep it</a>', mimetype="text/html")

    with served(webmail, "localhost") as inbox, window(chromium) as page:
        page.goto(inbox)

        page.get_by_role("link").click()

        expect(page).to_have_url(f"{site.url}/recover/")
        expect(page.get_by_role("button", name="Keep my account")).to_be_visible()
        page.get_by_role("button", name="Keep my account").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is back")


def test_a_form_on_another_site_changes_nothing(chromium: Browser, site: Site, ann: Person) -> None:
    with window(chromium) as page:
        page.goto(site.mailed_link(ann))
        key = page.locator('form:has-text("Keep my account") input[name=form_key]').input_value()
        before = everything(services_of(site.app))

        @Request.application
        def evil(_request: Request) -> Response:
            return Response(
                f'<form method="post" action="{site.url}/recover/">'
                f'<input name="form_key" value="{key}"><input name="action" value="keep">'
                "<button>Win a prize</button></form>",
                mimetype="text/html",
            )

        with served(evil, "localhost") as elsewhere:
            page.goto(elsewhere)
            with page.expect_navigation() as navigation:
                page.get_by_role("button").click()

            assert navigation.value is not None
            assert navigation.value.status in {400, 403}
        assert everything(services_of(site.app)) == before


def test_without_javascript_the_account_is_deleted_now_after_a_wrong_password(
    chromium: Browser, site: Site, ann: Person
) -> None:
    with window(chromium, java_script_enabled=False) as page:
        page.goto(site.mailed_link(ann))
        expect(page.get_by_role("time")).to_contain_text("UTC")
        page.locator("summary", has_text="Delete it now").click()
        page.locator("#delete-password").fill("not the password")
        page.get_by_label("I am sure.").check()
        page.get_by_role("button", name="Delete it now, for good").click()
        expect(page).to_have_title("Error: Your account will be deleted")
        expect(page.get_by_role("alert")).to_be_focused()
        expect(page.locator("#delete-password")).to_have_accessible_description(
            "Error: This is not the password of this account."
        )
        assert account_of(site.app, ann).state(now(services_of(site.app))) == "deactivated"

        page.get_by_role("alert").get_by_role("link").click()
        expect(page.locator("#delete-password")).to_be_focused()
        page.locator("#delete-password").fill(PASSWORD)
        page.get_by_role("button", name="Delete it now, for good").click()

        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is being deleted")
        assert account_of(site.app, ann).state(now(services_of(site.app))) == "due"


def test_the_keyboard_alone_is_enough(chromium: Browser, site: Site, ann: Person) -> None:
    focused = "document.activeElement.id || document.activeElement.innerText.trim()"
    with window(chromium) as page:
        page.goto(site.mailed_link(ann))
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Keep my account"
        while page.evaluate(focused) != "Delete it now":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "delete-password"
        page.keyboard.type("not the password")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Delete it now, for good"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
        with page.expect_navigation():
            page.keyboard.press("Enter")

        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate(focused) == "delete-password"
        page.keyboard.type(PASSWORD)
        with page.expect_navigation():
            page.keyboard.press("Enter")

        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is being deleted")


def test_a_forgotten_password_is_set_by_keyboard_without_javascript(
    chromium: Browser, site: Site, ann: Person
) -> None:
    with window(chromium, java_script_enabled=False) as page:
        page.goto(site.reset_link(ann))
        assert page.url == f"{site.url}/reset-password/"
        page.keyboard.press("Tab")
        expect(page.get_by_label("New password")).to_be_focused()
        page.keyboard.type("password")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_focused()
        page.get_by_label("New password").fill("nine purple otters sing")

        page.get_by_role("button", name="Set the new password").press("Enter")

        expect(page.get_by_role("heading", level=1)).to_have_text("Your password is changed")


def test_the_data_is_downloaded_and_the_page_stays(
    chromium: Browser, site: Site, ann: Person, tmp_path: Path
) -> None:
    with window(chromium, java_script_enabled=False) as page:
        page.goto(site.mailed_link(ann))
        page.locator("summary", has_text="Download my data").click()
        page.locator("#download-password").fill(PASSWORD)

        with page.expect_download() as download:
            page.get_by_role("button", name="Download my data").click()

        download.value.save_as(tmp_path / "data.zip")
        with zipfile.ZipFile(tmp_path / "data.zip") as archive:
            assert "ann 2" in archive.read("saved_passwords.csv").decode()
        expect(page.get_by_role("button", name="Keep my account")).to_be_visible()


@pytest.mark.parametrize(
    ("zone", "hours"), [("Australia/Brisbane", 10), ("America/Bogota", -5), ("UTC", 0)]
)
def test_the_promised_time_is_shown_by_the_readers_clock_and_nothing_moves(
    chromium: Browser, site: Site, ann: Person, zone: str, hours: int
) -> None:
    purge_at = account_of(site.app, ann).purge_at
    assert purge_at is not None
    local = purge_at + timedelta(hours=hours)
    utc = f"{purge_at:%H:%M} UTC"
    if local.date() != purge_at.date():
        utc = f"{purge_at:%A %-d %B %Y}, {utc}"
    clock = f"at {local:%H:%M} your time ({utc})" if hours else f"at {utc}"
    with window(chromium, timezone_id=zone, locale="de-DE") as page:
        page.goto(site.mailed_link(ann))

        expect(page.locator("time strong")).to_have_text(f"{local:%A %-d %B %Y}")
        expect(page.locator("time span")).to_have_text(clock)
        assert page.evaluate(SHIFTS) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_in_light_and_dark_on_a_narrow_screen(
    chromium: Browser, site: Site, ann: Person, scheme: Any
) -> None:
    screen: Any = {"width": 320, "height": 640}
    with window(chromium, color_scheme=scheme, viewport=screen) as page:

        def check() -> None:
            # What the answer to a form says is there before its style sheet, on a busy machine.
            page.wait_for_load_state("load")
            poor = [one for one in page.evaluate(CONTRASTS) if one["ratio"] < one["least"]]
            assert poor == [], page.title()
            assert page.evaluate("document.documentElement.scrollWidth") <= 320, page.title()
            # WCAG 2.2, 2.5.8: what is pressed is at least 24 pixels high.
            for target in page.locator("button:visible, summary, input:visible").all():
                box = target.bounding_box()
                assert box is not None
                least = 22 if target.get_attribute("type") == "checkbox" else 44
                assert box["height"] >= least, target.inner_text()

        page.goto(site.url)
        expect(page.get_by_role("heading", level=1)).to_have_text("accountsvc")
        check()
        page.goto(f"{site.url}/recover/nonsense")
        check()
        page.goto(site.reset_link(ann))
        check()
        page.goto(f"{site.url}/keep-account/")
        check()
        page.locator("form").evaluate("form => form.noValidate = true")
        page.get_by_role("button", name="Keep my account").click()
        expect(page.get_by_role("alert")).to_be_visible()
        check()
        bob = make_person(services_of(site.app), "bob")
        ask_address(services_of(site.app), bob.id, "a-rather-long-name." * 3 + "new@example.org")
        page.goto(f"{site.url}/confirm-email/{confirm_token(site.app, bob)}")
        check()
        page.get_by_label("Password of the account").fill("not the password")
        page.get_by_role("button", name="Use this address").click()
        expect(page.get_by_role("alert")).to_be_visible()
        check()
        page.goto(f"{site.url}/cancel-email/{cancel_token(site.app, bob)}")
        check()
        page.get_by_role("button", name="Keep my address").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Your email address stays")
        check()
        page.goto(site.mailed_link(ann))
        for closed in page.locator("summary").all():
            closed.click()
        check()
        page.locator("form:has(#delete-password)").evaluate("form => form.noValidate = true")
        page.get_by_role("button", name="Delete it now, for good").click()
        expect(page.get_by_role("alert")).to_be_visible()
        check()
        page.get_by_role("button", name="Keep my account").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is back")
        check()
        page.goto(f"{site.url}/receipts/")
        check()
        erase(services_of(site.app), ann)
        page.get_by_label("The number of the receipt").fill(str(ann.public_id))
        page.get_by_role("button", name="Show the receipt").click()
        expect(page.get_by_role("heading", name="What is gone")).to_be_visible()
        check()


def test_who_has_lost_the_mail_keeps_the_account_by_the_keyboard_alone(
    chromium: Browser, site: Site, ann: Person
) -> None:
    with window(chromium) as page:
        page.goto(f"{site.url}/keep-account/")
        page.keyboard.press("Tab")
        page.keyboard.type(ann.email)
        page.keyboard.press("Tab")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_focused()
        expect(page.get_by_label("Your email address")).to_have_value(ann.email)
        expect(page.get_by_label("Your password")).to_have_value("")

        page.get_by_label("Your password").focus()
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")

        expect(page.get_by_role("heading", level=1)).to_have_text("Your account is back")
        assert account_of(site.app, ann).is_active


def test_dark_is_dark(chromium: Browser, site: Site) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with window(chromium, color_scheme=scheme) as page:
            page.goto(f"{site.url}/recover/")
            grounds.append(
                page.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
            )

    assert grounds == ["rgb(255, 255, 255)", "rgb(26, 33, 43)"]


def test_text_of_twice_the_size_still_fits(chromium: Browser, site: Site, ann: Person) -> None:
    screen: Any = {"width": 640, "height": 640}
    with window(chromium, viewport=screen) as page:
        page.goto(site.mailed_link(ann))
        page.locator("summary").last.click()
        page.evaluate("document.documentElement.style.fontSize = '200%'")

        assert page.evaluate("document.documentElement.scrollWidth") <= 640


def test_another_address_is_confirmed_by_keyboard_without_javascript(
    chromium: Browser, site: Site
) -> None:
    bob = make_person(services_of(site.app), "bob")
    ask_address(services_of(site.app), bob.id, "new@example.org")
    with window(chromium, java_script_enabled=False) as page:
        page.goto(f"{site.url}/confirm-email/{confirm_token(site.app, bob)}")
        assert page.url == f"{site.url}/confirm-email/"
        page.keyboard.press("Tab")
        expect(page.get_by_label("Password of the account")).to_be_focused()
        page.keyboard.type("not the password")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_focused()
        expect(page.get_by_label("Password of the account")).to_have_accessible_description(
            "Error: This is not the password of the account."
        )
        page.get_by_label("Password of the account").fill(PASSWORD)

        page.get_by_role("button", name="Use this address").press("Enter")

        expect(page.get_by_role("heading", level=1)).to_have_text("Your email address is changed")
        assert account_of(site.app, bob).email == "new@example.org"


def test_by_a_stolen_session_the_owner_loses_the_account_at_no_step(
    chromium: Browser, sqlite_url: str, tmp_path: Path
) -> None:
    """Two browsers and two mailboxes: one has the session, the other the password."""
    inbox = Inbox()
    with smtp_server(inbox) as port:
        app = make_app(sqlite_url, tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}/?tls=none")
        with served(app) as url, window(chromium) as thief, window(chromium) as owner:
            ann, bob = (make_person(services_of(app), name) for name in ("ann", "bob"))
            others = belongings(services_of(app), bob)
            known = {"email": ann.email, "password": PASSWORD}
            moment = timedelta()
            others_came: list[Any] = []

            def steal(method: str, path: str, **options: Any) -> int:
                path = f"{url}/api/{path}"
                return thief.request.fetch(path, method=method, headers=ann.auth, **options).status

            def mailed(address: str) -> list[str]:
                """Deliver; return the texts that have come to *address*, and forget all mails."""
                nonlocal moment
                moment += timedelta(seconds=10)
                deliver_after(services_of(app), moment)
                came = [text_of(one) for one in inbox.messages if str(one["To"]) == address]
                others_came.extend(one for one in inbox.messages if str(one["To"]) != address)
                inbox.messages.clear()
                return came

            # when: the session asks for its own mailbox
            body = {"email": "thief@elsewhere.example"}
            assert steal("PUT", f"profile/{ann.id}/update/", data=body) == 200

            # then: its link wants the password, and the owner is told
            (asked,) = mailed(ann.email)
            (link,) = [mailed_path(text_of(one), "/confirm-email/") for one in others_came]
            thief.goto(url + link)
            thief.get_by_label("Password of the account").fill("a guess of mine")
            thief.get_by_role("button", name="Use this address").click()
            expect(thief.get_by_role("alert")).to_contain_text("not the password")
            assert account_of(app, ann).email == ann.email

            # when: a new password is asked for there, and the account is deleted
            assert steal("POST", "password-reset/", data=body) == 202
            assert steal("DELETE", f"profile/{ann.id}/delete/") == 204

            # then: the one is mailed to nobody, and the other to the owner, whose link works
            (scheduled,) = mailed(ann.email)
            assert len(others_came) == 1
            thief.goto(url + link)
            expect(thief.get_by_role("heading", level=1)).to_have_text("This link is out of date")
            assert steal("POST", f"profile/{ann.id}/purge/", data={"password": "a guess"}) == 401
            owner.goto(url + mailed_path(asked, "/cancel-email/"))
            expect(owner.get_by_role("main")).to_contain_text("will be deleted")
            owner.goto(url + mailed_path(scheduled, "/recover/"))
            owner.get_by_role("button", name="Keep my account").click()
            expect(owner.get_by_role("heading", level=1)).to_have_text("Your account is back")
            assert owner.request.post(f"{url}/api/sign-in/", data=known).status == 200
            assert steal("GET", "profile/") == 401
            assert account_of(app, ann).email == ann.email
            assert belongings(services_of(app), bob) == others
        dispose(app)
