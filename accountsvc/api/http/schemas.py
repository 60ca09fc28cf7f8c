"""The shapes of bodies and queries. They check form only; what a value may be, the core decides.

Unknown members are ignored: nobody promotes themselves by sending ``is_staff``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from apiflask import Schema
from marshmallow import EXCLUDE, ValidationError, pre_load, validates_schema
from marshmallow.fields import (
    AwareDateTime,
    Boolean,
    Dict,
    Integer,
    List,
    Nested,
    String,
)
from marshmallow.validate import Length, OneOf, Range, Regexp

from ... import bounds, generator
from ...accounts.fields import is_too_long
from ...accounts.reasons import REASON_LENGTH
from ...db.models import ACTIVE, DEACTIVATED, DUE, MAX_ID, OPERATOR, OWNER, STAFF, UNEXPLAINED
from ...db.text import is_text
from ...purge.failures import HELD, STUCK, WAITING
from .bodies import NOT_TEXT

_REQUIRED = "This field is required."
_BLANK = "This field may not be blank."


class Text(String):
    """A text that both databases can store. Never null; numbers are not made into texts."""

    default_error_messages = {  # noqa: RUF012 - marshmallow's own protocol
        "required": _REQUIRED,
        "null": "This field may not be null.",
        "invalid": "Send text.",
        "not_text": NOT_TEXT,
    }

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, *args, **kwargs)
        if not is_text(text):
            raise self.make_error("not_text")
        return text


class Body(Schema):
    class Meta:
        unknown = EXCLUDE


_NOT_BLANK = Length(min=1, error=_BLANK)


def _at_most(longest: int) -> Length:
    return Length(max=longest, error=f"Use at most {longest} characters.")


class _ShortEnough(Length):
    """Bounds a password as it is hashed; the document says of how many parts it may come at most.

    Of the one by which somebody confirms: who signs in is told nothing about its length.
    """

    def __call__(self, value: Any) -> Any:
        if is_too_long(value):
            raise ValidationError(f"Use at most {bounds.PASSWORD_CHARACTERS} characters.")
        return value


_SHORT_ENOUGH = _ShortEnough(max=bounds.PASSWORD_PARTS)


_REASON = [Regexp(r"[\s\S]*\S", error=_BLANK), _at_most(REASON_LENGTH)]


def _between(least: int, most: int) -> Range:
    return Range(min=least, max=most, error=f"Send a whole number from {least} to {most}.")


class Whole(Integer):
    default_error_messages = {  # noqa: RUF012 - marshmallow's own protocol
        "invalid": "Send a whole number.",
        "too_large": "Send a smaller number.",
    }

    def _validated(self, value: Any) -> Any:
        # Python reads the digits of every script, and underscores between them; other programs,
        # such as a proxy that looks at the query, do not.
        if isinstance(value, str) and not re.fullmatch(r"[ +-]*[0-9]+ *", value):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class Moment(AwareDateTime):
    """A time with its zone, as UTC."""

    default_error_messages = {  # noqa: RUF012 - marshmallow's own protocol
        "invalid": "Send a time such as 2026-12-07T09:30:00Z.",
        "invalid_awareness": "Send a time with a time zone, such as 2026-12-07T09:30:00Z.",
        "null": "This field may not be null.",
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(format="iso", **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        moment = super()._deserialize(value, *args, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise self.make_error("invalid") from None


class SignUp(Body):
    username = Text(required=True)
    email = Text(required=True)
    password = Text(required=True)
    first_name = Text(load_default="")
    last_name = Text(load_default="")
    number_phone = Text(load_default="")

    @pre_load
    def fill(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        # Fill a missing field with an empty one, which the core refuses together with whatever is
        # wrong in the others: marshmallow would report the missing ones alone.
        return {name: "" for name, field in self.fields.items() if field.required} | data


class SignIn(Body):
    """Longer values than an account can have are wrong ones: they match none, and cost the same."""

    email = Text(required=True, validate=_NOT_BLANK)
    password = Text(required=True, validate=_NOT_BLANK)


class Refresh(Body):
    refresh = Text(required=True, validate=_NOT_BLANK)


class ProfileUpdate(Body):
    """``password`` is the caller's own: another e-mail address needs it, or a fresh token."""

    username = Text()
    email = Text()
    first_name = Text()
    last_name = Text()
    number_phone = Text()
    password = Text(load_only=True, validate=_SHORT_ENOUGH)


class PasswordChange(Body):
    password = Text(required=True, validate=[_NOT_BLANK, _SHORT_ENOUGH])
    new_password = Text(required=True)


class Confirmation(Body):
    """``password`` is the caller's own."""

    password = Text(validate=[_NOT_BLANK, _SHORT_ENOUGH])


class PasswordEntry(Body):
    name_pages = Text(load_default="", validate=_at_most(255))
    url = Text(load_default="", validate=_at_most(2048))
    password_saved = Text(required=True, validate=[_NOT_BLANK, _at_most(4096)])


class PasswordEntryUpdate(Body):
    name_pages = Text(validate=_at_most(255))
    url = Text(validate=_at_most(2048))
    password_saved = Text(validate=[_NOT_BLANK, _at_most(4096)])


class GeneratorQuery(Schema):
    """``words`` asks for a passphrase; the other two are for passwords."""

    length = Whole(load_default=20, validate=_between(generator.MIN_LENGTH, generator.MAX_LENGTH))
    symbols = Boolean(load_default=True, error_messages={"invalid": "Send true or false."})
    words = Whole(validate=_between(generator.MIN_WORDS, generator.MAX_WORDS))


class PageQuery(Schema):
    """Without ``limit`` everything is answered at once; ``cursor`` comes from a ``Link``."""

    limit = Whole(validate=_between(1, 1000))
    cursor = Whole(load_default=0, validate=_between(0, MAX_ID))


class User(Schema):
    id = Integer(required=True)
    username = String(required=True)
    email = String(required=True)
    pending_email = String(required=True, allow_none=True)
    first_name = String(required=True)
    last_name = String(required=True)
    number_phone = String(required=True)
    avatar = String(required=True, allow_none=True)
    is_staff = Boolean(required=True)
    date_joined = String(required=True, metadata={"format": "date-time"})


class SignedIn(Schema):
    access = String(required=True)
    refresh = String(required=True)
    user = Nested(User, required=True)


class Access(Schema):
    access = String(required=True)


class Generated(Schema):
    output = String(required=True)


class Saved(Schema):
    message = String(required=True)
    id = Integer(required=True)


class StoredPassword(Schema):
    """``unreadable`` is there, and true, only if the entry cannot be read; its texts are empty."""

    id = Integer(required=True)
    name_pages = String(required=True)
    url = String(required=True)
    password_saved = String(required=True)
    user = Integer(required=True)
    created_at = String(required=True, metadata={"format": "date-time"})
    updated_at = String(required=True, metadata={"format": "date-time"})
    unreadable = Boolean()


class StoredPasswords(Schema):
    message = String(required=True)
    passwords = List(Nested(StoredPassword), required=True)


class UpdatedPassword(StoredPassword):
    message = String(required=True)


class Hold(Schema):
    id = Integer(required=True)
    reason = String(required=True)
    placed_at = String(required=True, metadata={"format": "date-time"})
    released_at = String(required=True, allow_none=True, metadata={"format": "date-time"})


class Deletion(Schema):
    """The deletion document; the last four members are for staff only."""

    user_id = Integer(required=True)
    state = String(required=True, validate=OneOf([ACTIVE, DEACTIVATED, DUE]))
    deactivated_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    purge_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    deactivated_by = String(
        required=True, allow_none=True, metadata={"enum": [OWNER, STAFF, OPERATOR, None]}
    )
    can_reactivate = Boolean(required=True)
    reason = String(allow_none=True)
    holds = List(Nested(Hold))
    blocked_by = String(
        allow_none=True, metadata={"enum": [HELD, UNEXPLAINED, WAITING, STUCK, None]}
    )
    attempts = Integer()


class Deleted(Deletion):
    """The deletion document as the answer of a DELETE; the token is for the owner only."""

    message = String(required=True)
    recovery_token = String()


class GiveBack(Body):
    """``reason`` is stored on the account until its purge; ``password`` is the caller's own."""

    reason = Text(validate=_REASON)
    password = Text(validate=[_NOT_BLANK, _SHORT_ENOUGH])


class Reactivate(Body):
    """Either ``token``, or ``email`` and ``password``."""

    email = Text()
    password = Text()
    token = Text()

    @validates_schema
    def either(self, data: dict[str, str], **_: Any) -> None:
        if "token" in data:
            return
        missing = {name: [_REQUIRED] for name in ("email", "password") if not data.get(name)}
        if missing:
            raise ValidationError(missing)


class Reschedule(Body):
    """Either of ``purge_at`` and ``reason``, or both; ``password`` is the caller's own."""

    purge_at = Moment()
    reason = Text(validate=_at_most(REASON_LENGTH))
    password = Text(validate=[_NOT_BLANK, _SHORT_ENOUGH])

    @validates_schema
    def something(self, data: dict[str, Any], **_: Any) -> None:
        if not data.keys() & {"purge_at", "reason"}:
            raise ValidationError({"purge_at": ["Send purge_at, reason or both."]})


class PurgeNow(Body):
    """``password`` is the caller's own, ``confirm`` (the account's username) is from the staff."""

    password = Text(validate=[_NOT_BLANK, _SHORT_ENOUGH])
    confirm = Text(validate=[_NOT_BLANK, _at_most(bounds.USERNAME_CHARACTERS)])


class NewHold(Body):
    """``password`` is the caller's own."""

    reason = Text(required=True, validate=_REASON)
    password = Text(validate=[_NOT_BLANK, _SHORT_ENOUGH])


class PasswordResetRequest(Body):
    email = Text(required=True, validate=_NOT_BLANK)


class PasswordReset(Body):
    token = Text(required=True, validate=_NOT_BLANK)
    new_password = Text(required=True)


class Message(Schema):
    message = String(required=True)


class SignedInOrDeletion(Schema):
    """As sign-in after a fresh password; otherwise the deletion document, without tokens."""

    access = String()
    refresh = String()
    user = Nested(User)
    user_id = Integer()
    state = String()
    deactivated_at = String(allow_none=True, metadata={"format": "date-time"})
    purge_at = String(allow_none=True, metadata={"format": "date-time"})
    deactivated_by = String(allow_none=True)
    can_reactivate = Boolean()


class Holds(Schema):
    results = List(Nested(Hold), required=True)


class DeletionsQuery(Schema):
    state = String(validate=OneOf([DEACTIVATED, DUE], error="Send deactivated or due."))
    due_before = Moment()
    held = Boolean(error_messages={"invalid": "Send true or false."})
    cursor = Text()
    limit = Whole(load_default=100, validate=_between(1, 1000))


class Deletions(Schema):
    results = List(Nested(Deletion), required=True)


class AuditQuery(Schema):
    """``subject`` is an account's id or, also after its purge, its public id."""

    subject = Text(validate=_at_most(64))
    action = Text(validate=_at_most(40))
    since = Moment()
    cursor = Whole(load_default=0, validate=_between(0, MAX_ID))
    limit = Whole(load_default=100, validate=_between(1, 1000))


class AuditEvent(Schema):
    id = Integer(required=True)
    at = String(required=True, metadata={"format": "date-time"})
    action = String(required=True)
    subject = String(required=True, allow_none=True, metadata={"format": "uuid"})
    actor = String(required=True, allow_none=True, metadata={"format": "uuid"})
    actor_kind = String(required=True)
    details = Dict(required=True)


class AuditEvents(Schema):
    results = List(Nested(AuditEvent), required=True)


class Health(Schema):
    status = String(required=True)


class Readiness(Schema):
    """``database``, ``schema`` and ``ledger`` are ``ok`` or say what is wrong.

    A part that was not reached is left out.
    """

    status = String(required=True, validate=OneOf(["ready", "not ready"]))
    database = String(required=True)
    schema = String()
    ledger = String()


class SweepStatus(Schema):
    """``late``: sweeps should have run and did not.

    ``brake`` is ``ok``, or says how many wait for it and what to do.
    """

    last_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    age_seconds = Integer(required=True, allow_none=True)
    late = Boolean(required=True)
    paused = Boolean(required=True)
    paused_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    clock_moved_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    braked = Boolean(required=True)
    braked_at = String(required=True, allow_none=True, metadata={"format": "date-time"})
    brake = String(required=True)


class Backlog(Schema):
    """Counts of accounts; ``owed`` counts by kind the effects that should have happened by now.

    ``failing_again`` counts accounts whose purge has failed more than once. ``unkept`` counts
    returns and holds that are not in the ledger after a minute, ``unscrubbed`` counts purges
    that wait for SQLite's file to be rewritten, and ``under_way`` those that are not completed.
    By kind: ``owed_failing`` counts those of the owed that have failed and are tried again,
    ``owed_oldest_seconds`` says since when the oldest is owed, and ``paused`` counts those that
    wait until purging goes on. ``delayed`` counts mails that wait because their recipient has been
    mailed, ``refused`` those whose address was refused and is tried again; neither is owed then.
    ``oldest_unsealed_seconds`` is the age of the audit trail's oldest entry that is in no seal, and
    0 below ten minutes.
    ``orphans`` counts files in quarantine, which are nobody's, and ``orphans_refused`` says that
    they are more than accounts show, so that none is deleted. ``canary`` is ``ok``, says what is
    wrong with the last one, or is null if none was ever made.
    """

    due = Integer(required=True)
    held = Integer(required=True)
    failing = Integer(required=True)
    failing_again = Integer(required=True)
    stuck = Integer(required=True)
    unexplained = Integer(required=True)
    braked = Integer(required=True)
    oldest_overdue_seconds = Integer(required=True)
    owed = Dict(required=True)
    owed_failing = Dict(required=True)
    owed_oldest_seconds = Dict(required=True)
    paused = Dict(required=True)
    delayed = Dict(required=True)
    refused = Dict(required=True)
    unscrubbed = Integer(required=True)
    under_way = Integer(required=True)
    oldest_under_way_seconds = Integer(required=True)
    unkept = Integer(required=True)
    oldest_unsealed_seconds = Integer(required=True)
    orphans = Integer(required=True)
    orphans_oldest_seconds = Integer(required=True)
    orphans_refused = Boolean(required=True)
    canary = String(required=True, allow_none=True)
    canary_passed_at = String(required=True, allow_none=True, metadata={"format": "date-time"})


class ServiceStatus(Schema):
    """``parts`` are ``ok`` or say what is wrong.

    ``sweep`` and ``backlog`` are null without a database. ``unmapped_tables`` names the tables that
    are on no data map, and refer to accounts or have a column named like a person's.
    """

    status = String(required=True, validate=OneOf(["ok", "degraded"]))
    parts = Dict(required=True, keys=String(), values=String())
    sweep = Nested(SweepStatus, required=True, allow_none=True)
    backlog = Nested(Backlog, required=True, allow_none=True)
    unmapped_tables = List(String(), required=True)
