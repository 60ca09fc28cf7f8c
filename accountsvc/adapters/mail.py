"""Mail: a message is made without a chance of header injection, and sent in one of two ways.

Transports raise :class:`MailRefused` for a fault that will not change by itself, and
:class:`~accountsvc.errors.MailUnavailable` for any that may. No text of theirs holds an address, a
host or a credential.
"""

from __future__ import annotations

import re
import smtplib
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from pathlib import Path
from typing import Protocol

from .. import mailboxes
from ..errors import MailUnavailable
from ..readers import read_sender
from ..urls import mail_server
from .objectstore import check_folder, place_from_url, write_file

# Each step of the dialogue with a server may take so many seconds. All steps together stay below
# the outbox's lease: a second worker would otherwise send the same mail meanwhile.
STEP_TIMEOUT = 10.0
# QUIT may take so many seconds: the server has the message already, and waiting longer would hold
# up the next mail.
_QUIT_TIMEOUT = 2.0
# Every server takes a line of so many characters, without its end (RFC 5321, section 4.5.3.1.6); a
# longer one might be cut.
_LONGEST_LINE = 998


class MailRefused(Exception):
    """The server takes no mail for this address, or not this mail (5yz, RFC 5321 section 4.2.1)."""


class Mailer(Protocol):
    """A way to send messages of :func:`compose`. Safe to share between threads and across forks."""

    def send(self, message: EmailMessage) -> None:
        """Hand *message* over for good; a repeat carries the same Message-ID.

        Raises MailRefused or MailUnavailable. After the latter it may have been taken all the same.
        """

    def check(self) -> None:
        """Raise MailUnavailable unless mail can be handed over now; send nothing."""


def compose(
    *,
    to: str,
    subject: str,
    text: str,
    html: str,
    uid: uuid.UUID,
    sender: str,
    sent_at: datetime,
) -> EmailMessage:
    """Make a message of a text and its HTML alternative, dated *sent_at*.

    Its Message-ID is made of *uid* and the sender's domain alone, so that a mail that is sent twice
    is the same mail twice. ``Auto-Submitted`` keeps absence notices away (RFC 3834).

    *to* is not trusted: anything but exactly one address raises MailRefused. *subject* and *sender*
    are ours; a line break in them raises ValueError.
    """
    recipient = mailbox(to)
    origin = read_sender(sender)
    # Headers are UTF-8 (RFC 6531) only where the mailbox's name needs it: many servers refuse that.
    message = EmailMessage(policy=SMTP if recipient.username.isascii() else SMTPUTF8)
    message["From"] = origin
    message["To"] = recipient
    if message["To"].addresses != (recipient,):
        raise MailRefused("not one address")
    message["Subject"] = subject
    message["Date"] = sent_at
    message["Message-ID"] = f"<{uid}@{origin.domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text, cte=_encoding(text))
    message.add_alternative(html, subtype="html", cte=_encoding(html))
    # The boundary is not random, so that a mail that is sent again is the same to the last byte.
    message.set_boundary(f"=={uid}==")
    return message


def mailbox(to: str) -> Address:
    """Return the address that a mail to *to* goes to, its domain in ASCII.

    Raises MailRefused for anything but exactly one address that a server can be given: by the rule
    of :mod:`accountsvc.mailboxes`, which decides who may sign up, too.
    """
    try:
        return mailboxes.read(to)
    except ValueError as exc:
        raise MailRefused("not an address") from exc


def _encoding(text: str) -> str | None:
    """Return ``7bit`` where no transfer encoding is needed, None to let the library choose one.

    Quoted-printable breaks lines: a link could not be copied out of a file of ``FileMailer``.
    """
    lines = text.splitlines()
    if text.isascii() and max(map(len, lines), default=0) <= _LONGEST_LINE:
        return "7bit"
    return None


class FileMailer:
    """A mailer that writes each message to a file of its own, ``<uid of the Message-ID>.eml``.

    A message that is sent again replaces itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def send(self, message: EmailMessage) -> None:
        name = re.fullmatch(r"<([0-9a-f-]{36})@.+>", str(message["Message-ID"]))
        if name is None:
            raise ValueError("not a message of compose()")
        with _file_errors():
            write_file(self._root / f"{name[1]}.eml", message.as_bytes())

    def check(self) -> None:
        with _file_errors():
            check_folder(self._root)


class SmtpMailer:
    """A mailer that hands messages to an SMTP server, a connection each.

    ``smtp://[user:password@]host[:port]/`` speaks TLS by STARTTLS, or with ``?tls=none`` not at
    all; ``smtps://`` speaks it from the first byte. The server's certificate is verified against
    the system's authorities (``SSL_CERT_FILE`` names others), and without TLS no password is sent.
    """

    def __init__(self, url: str, *, timeout: float = STEP_TIMEOUT) -> None:
        """Read *url*; connect to nothing yet. Raises ValueError, which does not repeat it."""
        server = mail_server(url)
        self._host, self._port, self._tls = server.host, server.port, server.tls
        self._user, self._password = server.user, server.password
        self._timeout = timeout

    def __repr__(self) -> str:
        return "SmtpMailer()"

    def send(self, message: EmailMessage) -> None:
        sender = message["From"].addresses[0].addr_spec
        recipient = message["To"].addresses[0].addr_spec
        with _smtp_errors():
            smtp = self._connect()
            try:
                if not recipient.isascii() and not smtp.has_extn("smtputf8"):
                    raise MailRefused("the server knows no such addresses")
                smtp.send_message(message, sender, [recipient])
                _quit(smtp)
            finally:
                smtp.close()

    def check(self) -> None:
        with _smtp_errors():
            smtp = self._connect()
            try:
                _quit(smtp)
            finally:
                smtp.close()

    def _connect(self) -> smtplib.SMTP:
        smtp: smtplib.SMTP
        if self._tls == "implicit":
            smtp = smtplib.SMTP_SSL(
                self._host,
                self._port,
                timeout=self._timeout,
                context=ssl.create_default_context(),
            )
        else:
            smtp = smtplib.SMTP(self._host, self._port, timeout=self._timeout)
        try:
            if self._tls == "starttls":
                smtp.starttls(context=ssl.create_default_context())
            smtp.ehlo_or_helo_if_needed()
            if self._user:
                smtp.login(self._user, self._password)
        except BaseException:
            smtp.close()
            raise
        return smtp


def mailer_from_url(url: str) -> Mailer:
    """Return the mailer of ``file:///folder``, ``smtp://…`` or ``smtps://…``; touch nothing yet.

    Raises ValueError for any other URL; the message does not repeat it.
    """
    if url.startswith(("smtp://", "smtps://")):
        return SmtpMailer(url)
    place = place_from_url(url)
    if isinstance(place, Path):
        return FileMailer(place)
    raise ValueError("must be file:///folder, smtp://host or smtps://host")


def _quit(smtp: smtplib.SMTP) -> None:
    with suppress(smtplib.SMTPException, OSError):
        if smtp.sock is not None:
            smtp.sock.settimeout(_QUIT_TIMEOUT)
        smtp.quit()


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MailUnavailable from exc


@contextmanager
def _smtp_errors() -> Iterator[None]:
    """Turn whatever smtplib raises into MailRefused or MailUnavailable.

    Only the answers to RCPT and DATA are about the recipient or the mail. A refusal of the sender
    or of the sign-in is a fault of the set-up, and would otherwise lose everybody's mail.
    """
    try:
        yield
    except smtplib.SMTPRecipientsRefused as exc:
        code, _ = next(iter(exc.recipients.values()))
        raise _fault_of(code) from exc
    except smtplib.SMTPDataError as exc:
        raise _fault_of(exc.smtp_code) from exc
    except (smtplib.SMTPException, OSError) as exc:
        raise MailUnavailable from exc


def _fault_of(code: int) -> Exception:
    return MailRefused(str(code)) if 500 <= code <= 599 else MailUnavailable()
