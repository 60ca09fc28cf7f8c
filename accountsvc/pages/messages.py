"""The pages on which nothing is left to decide: each says why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A page without a form. ``back`` says that the page before it is still worth going to."""

    status: int
    title: str
    paragraphs: tuple[str, ...]
    back: bool = False


class ShowMessage(Exception):
    """Raised where nothing is left to decide: the answer is a page with this message."""

    def __init__(self, message: Message) -> None:
        super().__init__(message.title)
        self.message = message


INCOMPLETE = Message(
    404,
    "This link is not complete",
    (
        "A part of it is missing or was changed on the way. Nothing was done.",
        "Open it from the mail again, or copy the whole of it, to the last letter, into the "
        "address bar.",
    ),
)
NO_LINK = Message(
    400,
    "Open the link in your mail",
    (
        "This page needs the link that we mailed to you. Open it from the mail again.",
        "If you come back here each time, allow cookies for this site: for a short while one of "
        "them holds the link, so that it does not stay in the address bar.",
    ),
)
FOREIGN_FORM = Message(
    403,
    "Nothing was changed",
    (
        "This form was out of date, or it came from another place than this site. "
        "Perhaps you have opened another link since.",
    ),
    back=True,
)
NOT_UNDERSTOOD = Message(
    400,
    "Nothing was changed",
    ("We could not make sense of what your browser sent.",),
    back=True,
)
UNAVAILABLE = Message(
    503,
    "We cannot answer at the moment",
    ("Please try again in a few seconds. Your link stays as good as it was.",),
    back=True,
)
BROKEN = Message(
    500,
    "Something went wrong on our side",
    ("It is not your fault, and we have a note of it. Please try again later.",),
    back=True,
)

ACCOUNT_KEPT = Message(
    200,
    "Your account is back",
    (
        "Nothing in it was lost, and nothing will be deleted.",
        "Sign in as you always did. Devices that were signed in before have to sign in again.",
        "If it was not you who asked for the deletion, change your password now.",
    ),
)
USED = Message(
    409,
    "Your account is active",
    (
        "This link has been used already. It does nothing any more, and nothing will be deleted.",
        "Sign in as you always do.",
    ),
)
REPLACED = Message(
    410,
    "This link is out of date",
    (
        "Something has changed since we mailed it: the date, your password, or you have deleted "
        "your account once more. Nothing was done now.",
        "Your account can still be kept. Open the link in our newest mail, or sign in with your "
        "email address and your password and choose to keep it.",
    ),
)
OVER = Message(
    410,
    "Your account is being deleted",
    (
        "The time to change your mind is over. Your account and all that is in it are being "
        "deleted for good.",
        "We will mail you when it is done.",
    ),
)
PURGED = Message(
    410,
    "Your account has been deleted",
    ("It is gone, with all that was in it. Nobody can bring it back.",),
)
DUE_NOW = Message(
    202,
    "Your account is being deleted",
    (
        "You have given up the rest of the waiting time. Your account and all that is in it are "
        "being deleted for good.",
        "We will mail you when it is done.",
    ),
)

PASSWORD_SET = Message(
    200,
    "Your password is changed",
    ("Sign in with the new one. Every device that was signed in has to sign in again.",),
)
PASSWORD_SET_IN_GRACE = Message(
    200,
    "Your password is changed",
    (
        "Your account is still going to be deleted. To keep it, sign in with the new password and "
        "choose to keep it.",
    ),
)
RESET_USED = Message(
    410,
    "This link has been used",
    (
        "It sets a password once only, and nothing was changed now.",
        "Sign in with the password that you chose, or ask for a new link.",
    ),
)
RESET_EXPIRED = Message(
    410,
    "This link is too old",
    ("For your safety it works for one hour only. Ask for a new one where you sign in.",),
)
