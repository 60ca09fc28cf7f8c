"""How mail is sent: messages without header injection, files, and a real SMTP server."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountsvc.adapters.mail import (
    FileMailer,
    MailRefused,
    SmtpMailer,
    compose,
    mailer_from_url,
)
from accountsvc.errors import MailUnavailable
from accountsvc.readers import read_sender
from tests.support.servers import free_port
from tests.support.smtp import (
    PASSWORD,
    USER,
    Inbox,
    make_certificate,
    silent_server,
    smtp_server,
)

UID = uuid.UUID("0e8f9a3c-6a55-4f0e-9b3e-5d6f1c2b7a10")
# Of a step that is not meant to run into it; a busy machine takes seconds.
TIMEOUT = 30.0
HEADERS = {
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "MIME-Version",
    "Content-Type",
}


def make_message(**changes: Any) -> EmailMessage:
    return compose(
        **{
            "to": "ann@example.org",
            "subject": "A subject",
            "text": "Hello.\n",
            "html": "<p>Hello.</p>\n",
            "uid": UID,
            "sender": "Accounts <accounts@example.com>",
            "sent_at": datetime(2026, 12, 7, 14, 5, tzinfo=UTC),
            **changes,
        }
    )


def parsed(data: bytes) -> EmailMessage:
    message = message_from_bytes(data.replace(b"\r\n", b"\n"), policy=default)
    assert isinstance(message, EmailMessage)
    return message


# Messages


def test_a_message_says_who_sent_it_when_and_that_it_wants_no_answer() -> None:
    message = parsed(make_message().as_bytes())

    assert set(message.keys()) == HEADERS
    assert message["From"] == "Accounts <accounts@example.com>"
    assert message["To"] == "ann@example.org"
    assert message["Date"].datetime == datetime(2026, 12, 7, 14, 5, tzinfo=UTC)
    assert message["Message-ID"] == f"<{UID}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"


def test_the_text_comes_first_and_the_page_is_its_alternative() -> None:
    message = parsed(make_message(text="Größe: 1 €\n", html="<p>Größe: 1 €</p>\n").as_bytes())

    assert message.get_content_type() == "multipart/alternative"
    text, html = message.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert isinstance(text, EmailMessage)
    assert isinstance(html, EmailMessage)
    assert (text.get_content(), html.get_content()) == ("Größe: 1 €\n", "<p>Größe: 1 €</p>\n")


def test_a_long_link_is_in_the_raw_message_as_it_is() -> None:
    link = f"https://accounts.example.com/recover/{'x=' * 400}"

    data = make_message(text=f"{link}\n", html=f'<a href="{link}">x</a>\n').as_bytes()

    assert data.count(link.encode()) == 2


def test_no_line_is_longer_than_smtp_allows() -> None:
    word = "x" * 5000

    data = make_message(text=word, html=word).as_bytes()

    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert parsed(data).get_body().get_content() == f"{word}\n"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "to",
    [
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@example.org\r\nBcc: eve@example.org",
        "ann@example.org\nBcc: eve@example.org",
        "ann@example.org\r",
        "ann\r\nBcc:eve@example.org",
        "ann@example.org\0",
        "ann@example.org\x85Bcc: eve@example.org",
        "ann@example.org\u2028Bcc: eve@example.org",
        "ann@example.org, eve@example.org",
        "ann@example.org,eve@example.org",
        "eve@example.org;ann@example.org",
        "<ann@example.org>",
        "Ann <ann@example.org>",
        "eve@example.org (ann@example.org)",
        "ann @example.org",
        "=?utf-8?q?a=0d=0aBcc=3aeve?=@example.org",
        "=?utf-8?b?YQ0KQmNjOmV2ZQ==?=@example.org",
        f"ann@{'x' * 64}.org",
        "ann@example..org",
        "ann\ud800@example.org",
    ],
)
def test_what_is_not_exactly_one_address_is_refused(to: str) -> None:
    with pytest.raises(MailRefused):
        make_message(to=to)


ENCODED_WORDS = st.builds("=?{}?{}?{}?=".format, st.just("utf-8"), st.sampled_from("qb"), st.text())


@settings(deadline=None)
@given(
    to=st.text()
    | st.emails()
    | (st.text() | ENCODED_WORDS).map(lambda text: f"{text}@example.org")
    | st.text(st.characters(codec="ascii")).map(lambda text: f"ann@{text}")
)
def test_no_recipient_adds_a_header_or_a_recipient(to: str) -> None:
    try:
        message = make_message(to=to)
    except MailRefused:
        return

    again = parsed(message.as_bytes())
    assert set(again.keys()) == HEADERS
    assert len(message["To"].addresses) == 1
    local, _, domain = to.rpartition("@")
    address = message["To"].addresses[0]
    assert (address.username, address.domain) == (local, domain.encode("idna").decode())


@pytest.mark.parametrize("field", ["subject", "sender"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_a_line_break_in_a_header_of_ours_is_an_error(field: str, end: str) -> None:
    with pytest.raises(ValueError):
        make_message(**{field: f"accounts@example.com{end}Bcc: eve@example.org"})


def test_a_domain_outside_ascii_is_written_as_servers_know_it() -> None:
    assert make_message(to="ann@bücher.example")["To"] == "ann@xn--bcher-kva.example"


def test_a_mail_does_not_go_to_whoever_has_a_domain_of_similar_letters() -> None:
    """IDNA of 2003 took ``ß`` for ``ss`` and dropped joiners: another domain, of another person."""
    assert make_message(to="ann@faß.example")["To"] == "ann@xn--fa-hia.example"
    with pytest.raises(MailRefused):
        make_message(to="ann@❤.example")


@pytest.mark.parametrize(
    "sender",
    ["", "Accounts", "accounts@", "@example.org", "a@example.org, b@example.org", "Größe <a@b.c>"],
)
def test_a_sender_that_is_not_one_address_is_an_error(sender: str) -> None:
    with pytest.raises(ValueError):
        read_sender(sender)


@pytest.mark.parametrize("sender", ["a@example.org", "Accounts <a@example.org>", '"A, B" <a@b.c>'])
def test_a_sender_is_read_with_or_without_a_name(sender: str) -> None:
    assert read_sender(sender).username == "a"


# Files


def test_a_file_is_named_by_the_message_and_holds_it_whole(tmp_path: Path) -> None:
    message = make_message()

    FileMailer(tmp_path / "new" / "mail").send(message)

    (path,) = (tmp_path / "new" / "mail").iterdir()
    assert path.name == f"{UID}.eml"
    assert path.read_bytes() == message.as_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_message_that_is_written_twice_is_there_once(tmp_path: Path) -> None:
    mailer = FileMailer(tmp_path)

    mailer.send(make_message(text="first"))
    mailer.send(make_message(text="second"))

    (path,) = tmp_path.iterdir()
    assert b"second" in path.read_bytes()


def test_a_folder_that_cannot_be_used_is_a_passing_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    mailer = FileMailer(tmp_path / "file" / "mail")

    with pytest.raises(MailUnavailable):
        mailer.send(make_message())
    with pytest.raises(MailUnavailable):
        mailer.check()
    FileMailer(tmp_path / "mail").check()


# SMTP


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def plain(inbox: Inbox) -> Iterator[SmtpMailer]:
    with smtp_server(inbox) as port:
        yield mailer_for(port)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS that this process trusts for localhost."""
    certificate, context = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return context


def mailer_for(port: int, *, timeout: float = TIMEOUT) -> SmtpMailer:
    return SmtpMailer(f"smtp://127.0.0.1:{port}/?tls=none", timeout=timeout)


def test_a_message_arrives_whole(inbox: Inbox, plain: SmtpMailer) -> None:
    message = make_message()

    plain.send(message)

    assert inbox.recipients == [["ann@example.org"]]
    assert inbox.raw == [message.as_bytes()]


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
@pytest.mark.parametrize("implicit", [False, True])
def test_a_message_arrives_by_tls_with_a_password(
    inbox: Inbox, trusted: ssl.SSLContext, implicit: bool
) -> None:
    # The server does not count TLS from the first byte as TLS.
    options = {"auth_require_tls": not implicit, "require_starttls": not implicit}
    with smtp_server(
        inbox,
        implicit_tls=implicit,
        ssl_context=trusted,
        auth_required=True,
        authenticator=inbox.authenticate,
        **options,
    ) as port:
        login = f"{USER}:{quote(PASSWORD, safe='')}"
        scheme = "smtps" if implicit else "smtp"
        mailer = SmtpMailer(f"{scheme}://{login}@localhost:{port}/", timeout=TIMEOUT)

        mailer.check()
        mailer.send(make_message())

    assert len(inbox.messages) == 1
    assert inbox.passwords == [PASSWORD.encode()] * 2


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
def test_a_server_that_is_not_who_it_should_be_gets_nothing(
    inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, implicit: bool, fault: str
) -> None:
    other = "mail.example.org" if fault == "another name" else "localhost"
    certificate, context = make_certificate(tmp_path, name=other)
    if fault == "another name":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with smtp_server(
        inbox, implicit_tls=implicit, ssl_context=context, authenticator=inbox.authenticate
    ) as port:
        scheme = "smtps" if implicit else "smtp"
        mailer = SmtpMailer(f"{scheme}://{USER}:password@localhost:{port}/", timeout=TIMEOUT)

        with pytest.raises(MailUnavailable) as caught:
            mailer.send(make_message())

    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert (inbox.messages, inbox.passwords, inbox.tried) == ([], [], [])


def test_a_server_without_tls_gets_nothing_unless_it_is_asked_for(inbox: Inbox) -> None:
    with smtp_server(inbox, auth_require_tls=False, authenticator=inbox.authenticate) as port:
        mailer = SmtpMailer(f"smtp://{USER}:password@127.0.0.1:{port}/", timeout=TIMEOUT)

        with pytest.raises(MailUnavailable):
            mailer.send(make_message())

    assert (inbox.messages, inbox.passwords, inbox.tried) == ([], [], [])


def test_a_wrong_password_of_ours_is_no_fault_of_the_recipient(
    inbox: Inbox, trusted: ssl.SSLContext
) -> None:
    with smtp_server(inbox, ssl_context=trusted, authenticator=inbox.authenticate) as port:
        mailer = SmtpMailer(f"smtp://{USER}:wrong@localhost:{port}/", timeout=TIMEOUT)

        with pytest.raises(MailUnavailable):
            mailer.send(make_message())

    # Once by each way of signing in that the server offers (RFC 4954).
    assert set(inbox.passwords) == {b"wrong"}


@pytest.mark.parametrize(
    ("command", "answer", "error"),
    [
        ("RCPT", "550 5.1.1 No such user", MailRefused),
        ("RCPT", "553 5.1.3 Bad address", MailRefused),
        ("DATA", "554 5.6.0 No", MailRefused),
        ("RCPT", "450 4.2.0 Greylisted", MailUnavailable),
        ("RCPT", "421 4.3.2 Shutting down", MailUnavailable),
        ("DATA", "452 4.3.1 Disk full", MailUnavailable),
        ("DATA", "421 4.3.2 Shutting down", MailUnavailable),
        ("MAIL", "421 4.3.2 Shutting down", MailUnavailable),
        # The sender is the same for everybody: no recipient's fault, and an operator can mend it.
        ("MAIL", "550 5.7.1 Sender not allowed", MailUnavailable),
    ],
)
def test_a_refusal_for_good_is_told_from_one_for_now(
    inbox: Inbox, plain: SmtpMailer, command: str, answer: str, error: type[Exception]
) -> None:
    inbox.answers[command] = answer

    with pytest.raises(error) as caught:
        plain.send(make_message())

    assert inbox.messages == []
    assert "example" not in str(caught.value)


@pytest.mark.parametrize("answer", ["500 What?", "421 Shutting down"])
def test_a_message_that_was_taken_is_sent_whatever_the_goodbye(
    inbox: Inbox, plain: SmtpMailer, answer: str
) -> None:
    inbox.answers["QUIT"] = answer

    plain.send(make_message())

    assert len(inbox.messages) == 1


def test_a_connection_lost_after_the_message_makes_it_come_twice_as_the_same(
    inbox: Inbox, plain: SmtpMailer
) -> None:
    inbox.drop_after_data = True
    with pytest.raises(MailUnavailable):
        plain.send(make_message())
    inbox.drop_after_data = False

    plain.send(make_message())

    first, second = inbox.messages
    assert first["Message-ID"] == second["Message-ID"]


def test_a_server_that_is_down_is_a_passing_fault() -> None:
    mailer = mailer_for(free_port())

    with pytest.raises(MailUnavailable):
        mailer.send(make_message())
    with pytest.raises(MailUnavailable):
        mailer.check()


def test_a_server_that_never_answers_is_left_alone_in_time() -> None:
    with silent_server() as port:
        for mailer in (
            mailer_for(port, timeout=0.3),
            SmtpMailer(f"smtps://127.0.0.1:{port}/", timeout=0.3),
        ):
            with pytest.raises(MailUnavailable):
                mailer.send(make_message())


def test_a_mailbox_outside_ascii_gets_its_mail_where_the_server_can(inbox: Inbox) -> None:
    with smtp_server(inbox, enable_SMTPUTF8=True) as port:
        mailer_for(port).send(make_message(to="jürgen@bücher.example"))

    assert inbox.recipients == [["jürgen@xn--bcher-kva.example"]]
    assert "To: jürgen@xn--bcher-kva.example".encode() in inbox.raw[0]


def test_a_mailbox_outside_ascii_is_refused_where_the_server_cannot(inbox: Inbox) -> None:
    with smtp_server(inbox, enable_SMTPUTF8=False) as port, pytest.raises(MailRefused):
        mailer_for(port).send(make_message(to="jürgen@example.org"))

    assert inbox.messages == []


# Settings


@pytest.mark.parametrize(
    "url",
    [
        "smtp://",
        "smtp:///",
        "smtp://user:secret@:25",
        "smtp://host/path",
        "smtp://host/?tls=maybe",
        "smtp://host/?tls=",
        "smtp://host/?tls=none&tls=starttls",
        "smtp://host/?ssl=1",
        "smtp://host:port/",
        "smtp://host:99999/",
        "smtp://user:secret#@host/",
        "smtps://user:secreté@host/",
        "smtp://user:secret/@host/",
        f"smtp://{'x' * 64}/",
        "smtps://host/?tls=none",
        "smtp://user:secret@host/?tls=none",
        "s3://bucket/secret",
        "http://secret/",
        "secret",
        "",
    ],
)
def test_a_url_that_names_no_way_to_send_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        mailer_from_url(url)

    assert "secret" not in str(caught.value)


def test_a_url_names_files_or_a_server(tmp_path: Path) -> None:
    assert isinstance(mailer_from_url(f"file://{tmp_path}"), FileMailer)
    for url in ("smtp://host", "smtp://u:p@host:587/?tls=starttls", "smtp://host/?tls=none"):
        assert isinstance(mailer_from_url(url), SmtpMailer)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(SmtpMailer("smtps://user:secret@host/"))
