"""The pages on which nothing is left to decide: each says why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

# How an account stands, as far as a page has to know whom to send where: in use, left by its owner,
# or switched off by staff or an operator.
IN_USE, LEFT, OFF = "in use", "left", "off"


@dataclass(frozen=True)
class Message:
    """A page without a form.

    ``back`` says that the page before it is still worth going to, ``keep`` that its reader can keep
    the account by signing in, and gets a link to where.
    """

    status: int
    title: str
    paragraphs: tuple[str, ...]
    back: bool = False
    keep: bool = False


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
NO_RECEIPT = Message(
    404,
    "No receipt has this number",
    (
        "Check it against our mail, to the last letter. A receipt is there from the moment in "
        "which an account is gone; until the time that was promised there is none.",
    ),
    back=True,
)
# What a receipt does not record yet, by the fact that will, in the order in which it comes.
STILL_TO_COME = {
    "files_absent": "Its picture is gone from our store, with every earlier version.",
    "ledger_written": "Our ledger knows of it, so that no restored backup brings it back.",
    "told": "Its owner is told by mail, or the mail is given up; we keep the address for that, for "
    "72 hours at most.",
    "scrubbed": "What our database has freed is made unreadable.",
    "completed": "The deletion is complete.",
    "verified": "We have looked into every place that we can look into, and found nothing.",
}
UNAVAILABLE = Message(
    503,
    "We cannot answer at the moment",
    (
        "Please try again in a few seconds. Nothing was changed, and a link stays as good as it "
        "was.",
    ),
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
        "If it was not you who asked for the deletion, change your password now: that signs out "
        "every device, also somebody else's.",
    ),
)
# Whoever keeps it by a link to a former address does not sign in as they always did.
ACCOUNT_KEPT_MOVED = Message(
    200,
    "Your account is back",
    (
        "Nothing in it was lost, and nothing will be deleted. Every device that was signed in "
        "before has to sign in again.",
        "The email address of the account was changed lately: sign in with the one that it has.",
        "If it was not you who changed it, or you cannot sign in, contact the support now: "
        "somebody else may be using the account, and can sign in.",
    ),
)
USED = Message(
    409,
    "Your account is active",
    (
        "This link has been used already, or your account was given back in another way. It does "
        "nothing any more, and nothing will be deleted.",
        "Sign in with the email address and the password of the account.",
    ),
)
ACTIVE = Message(
    409,
    "Your account is active",
    (
        "There is nothing to take back, and nothing will be deleted.",
        "Sign in with the email address and the password of the account.",
    ),
)
# Whom the support alone can help reads nothing else: a link or a password would be tried in vain.
_BY_STAFF = (
    "Your account was switched off by our staff, so you cannot take that back yourself. If you "
    "think that it is a mistake, contact the support before it is deleted."
)
SWITCHED_OFF = Message(403, "Contact the support", (_BY_STAFF, "Nothing was done now."))
REPLACED = {
    LEFT: Message(
        410,
        "This link is out of date",
        (
            "Something has changed since we mailed it: the date, your password, or you have "
            "deleted your account once more. Nothing was done now.",
            "Your account can still be kept. Open the link in our newest mail, or sign in with "
            "your email address and your password on the page below.",
            "If you have neither, contact the support before the account is deleted.",
        ),
        keep=True,
    ),
    OFF: Message(410, "This link is out of date", (_BY_STAFF, "Nothing was done now.")),
}
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

PASSWORD_SET = {
    IN_USE: Message(
        200,
        "Your password is changed",
        ("Sign in with the new one. Every device that was signed in has to sign in again.",),
    ),
    LEFT: Message(
        200,
        "Your password is changed",
        (
            "Your account is still going to be deleted. To keep it, sign in with the new password "
            "on the page below, or open the link in the mail that we send you now.",
            "The links in our mails of before open nothing any more.",
            "For your safety your data can be downloaded only when a day has passed since, or half "
            "of the waiting time if that is shorter.",
        ),
        keep=True,
    ),
    OFF: Message(
        200,
        "Your password is changed",
        ("It opens nothing yet: your account stays switched off.", _BY_STAFF),
    ),
}
_RESET_USED = "It sets a password once only, and nothing was changed now."
RESET_USED = {
    IN_USE: Message(
        410,
        "This link has been used",
        (_RESET_USED, "Sign in with the password that you chose, or ask for a new link."),
    ),
    LEFT: Message(
        410,
        "This link has been used",
        (
            _RESET_USED,
            "Your account is going to be deleted. To keep it, sign in with the password that you "
            "chose on the page below, or open the link in our newest mail.",
        ),
        keep=True,
    ),
    OFF: Message(410, "This link has been used", (_RESET_USED, _BY_STAFF)),
}
_RESET_VOID = (
    "Since we mailed it, your account was deleted or given back, was signed out everywhere, or has "
    "got another email address: each of these ends such links. Nothing was changed now."
)
RESET_VOID = {
    IN_USE: Message(
        410,
        "This link is out of date",
        (_RESET_VOID, "Ask for a new one where you sign in."),
    ),
    LEFT: Message(
        410,
        "This link is out of date",
        (
            _RESET_VOID,
            "Your account is going to be deleted. To keep it, open the link in our newest mail, or "
            "sign in on the page below. If you have forgotten the password, ask for a new link "
            "where you sign in.",
        ),
        keep=True,
    ),
    OFF: Message(410, "This link is out of date", (_RESET_VOID, _BY_STAFF)),
}
_RESET_HOUR = "For your safety it works for one hour only."
_RESET_EXPIRED = Message(
    410, "This link is too old", (f"{_RESET_HOUR} Ask for a new one where you sign in.",)
)
RESET_EXPIRED = {
    IN_USE: _RESET_EXPIRED,
    LEFT: _RESET_EXPIRED,
    OFF: Message(410, "This link is too old", (_RESET_HOUR, _BY_STAFF)),
}

ADDRESS_CHANGED = Message(
    200,
    "Your email address is changed",
    (
        "This address is your account's from now on. Sign in with it, and with the password that "
        "you have.",
        "The previous address was told. Devices that are signed in stay so.",
    ),
)
ADDRESS_USED = Message(
    410,
    "The email address was changed since",
    (
        "This link has been used, or another address was confirmed after we mailed it. Nothing "
        "was changed now.",
        "Sign in with the address that you chose last.",
    ),
)
_ADDRESS_VOID = (
    "It works for 72 hours, and no longer than until another address is asked for, the change is "
    "called off, or every session is ended, as by a new password or the account's deletion. "
    "Nothing was changed now."
)
ADDRESS_VOID = {
    IN_USE: Message(
        410,
        "This link is out of date",
        (
            _ADDRESS_VOID,
            "If you still want to use this address, sign in with the one that you have, and ask "
            "for it once more.",
        ),
    ),
    LEFT: Message(
        410,
        "This link is out of date",
        (
            _ADDRESS_VOID,
            "Your account is going to be deleted. To keep it, open the link in our newest mail to "
            "the address that it has, or sign in on the page below; then ask for this one again.",
        ),
        keep=True,
    ),
    OFF: Message(410, "This link is out of date", (_ADDRESS_VOID, _BY_STAFF)),
}
ADDRESS_KEPT = Message(
    200,
    "Your email address stays",
    (
        "What was asked for is called off, and no link to another address works any more.",
        "If it was not you who asked for it, set a new password now, where you sign in "
        "(“forgot password”). It ends every session, also theirs.",
    ),
)
CANCEL_LATE = Message(
    410,
    "Your email address was changed",
    (
        "Somebody has opened a link to another address, and entered the password of your "
        "account. It cannot be called off here any more.",
        "If it was not you, contact the support now, and change the password of your mailbox.",
    ),
)
CANCEL_LATE_IN_GRACE = {
    LEFT: Message(
        410,
        "Your email address was changed",
        (
            "Somebody has opened a link to another address, and entered the password of your "
            "account. Since then somebody has asked to delete it.",
            "If it was not you, open the link in our newest mail to this address: it keeps the "
            "account. Then contact the support, and change the password of your mailbox.",
        ),
    ),
    OFF: Message(
        410,
        "Your email address was changed",
        (
            "Somebody has opened a link to another address, and entered the password of your "
            "account. Since then our staff has switched it off.",
            "If it was not you who changed the address, contact the support now, and change the "
            "password of your mailbox.",
        ),
    ),
}
CANCEL_REPLACED = Message(
    410,
    "This link is out of date",
    (
        "It works for 72 hours, and no longer than until every session is ended. Another address "
        "was asked for since; a newer mail of ours has the link that calls that off. Your address "
        "has not changed.",
        "If it was not you, you need not wait for that mail: set a new password now, where you "
        "sign in (“forgot password”). It ends every session, and calls every change off.",
    ),
)
CANCEL_VOID = Message(
    410,
    "There is nothing to call off",
    (
        "Your email address has not changed, and nobody can confirm the other one any more.",
        "If it was not you who asked for it, set a new password where you sign in (“forgot "
        "password”), if you have not done so since.",
    ),
)
_CANCEL_ENDED = (
    "Your email address has not changed, and nobody can confirm the other one any more. But your "
    "account has been switched off since, and will be deleted."
)
CANCEL_IN_GRACE = {
    LEFT: Message(
        410,
        "There is nothing to call off",
        (
            _CANCEL_ENDED,
            "If you want to keep it, open the link in our newest mail about that, or sign in on "
            "the page below. If you can do neither, contact the support.",
        ),
        keep=True,
    ),
    OFF: Message(410, "There is nothing to call off", (_CANCEL_ENDED, _BY_STAFF)),
}
