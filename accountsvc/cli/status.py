"""The command that says how everything stands, in counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..db import rows
from ..db.catalog import Unmapped
from ..db.engine import database_now
from ..monitoring.status import Status
from ..monitoring.status import read as read_status
from ..outbox import notices, queue
from ..outbox.marks import LedgerAhead
from ..purge.at_once import STOPS
from ..purge.stops import DatabaseBehind, LedgerGone, LedgerUnreadable
from ..web import services
from .accounts import accounts_group
from .console import (
    fail,
    json_option,
    logs_aside,
    say_what_has_no_seal,
    sentences,
    show_json,
    show_lines,
)
from .purging import OBSTACLES
from .words import braked, clock_moved, clocks_differ, count, duration, fields, paused, stamp, table


@accounts_group.command()
@json_option
@sentences
def status(*, as_json: bool) -> None:
    """Show what is due, overdue, held, stuck, unexplained and owed.

    \b
    flask --app wsgi accounts status
    flask --app wsgi accounts status --json

    \b
    Exit codes: 0 nobody is stuck or unexplained, also while the brake holds
    or purging is paused, which is said; 1 somebody is, a purge has failed
    more than once, something owed has failed or is late by more than ten
    minutes, a return or hold is late for the ledger, a table on no data map
    refers to accounts, more files are nobody's than accounts show, the
    canary failed, the database is older
    than its ledger, or it cannot be
    read; 2 bad usage.
    """
    settings = services().settings
    with services().reading() as session:
        now = database_now(session)
        counts = read_status(session, now=now, max_attempts=settings.purge_max_attempts)
        kept_keys, kept_key_ids = rows.kept_keys(session, most=20)
    unmapped = services().unmapped_tables()
    if not as_json:
        show_lines(_what_stops(counts), err=True)
    say_what_has_no_seal()
    shown = {
        "active": counts.active,
        "deactivated": counts.deactivated,
        "due": counts.due,
        "held": counts.held,
        "failing": counts.failing,
        "failing_again": counts.failing_again,
        "stuck": counts.stuck,
        "braked": counts.braked,
        "unexplained": counts.unexplained,
        "overdue_seconds": round(counts.overdue.total_seconds()),
        "owed": counts.owed,
        "owed_failing": counts.owed_failing,
        "owed_oldest_seconds": {
            kind: round(age.total_seconds()) for kind, age in counts.owed_oldest.items()
        },
        "paused": counts.paused,
        "delayed": dict(counts.delayed),
        "refused": dict(counts.refused),
        "last_purged_at": stamp(counts.last_purged_at),
        "swept_at": stamp(counts.swept_at),
        "paused_at": stamp(counts.paused_at),
        "clock_moved_at": stamp(counts.clock_moved_at),
        "braked_at": stamp(counts.brake.held_at),
        "allowed": counts.brake.allowed,
        "unscrubbed": counts.unscrubbed if settings.is_sqlite else 0,
        "under_way": counts.under_way,
        "oldest_under_way_seconds": round(counts.oldest_under_way.total_seconds()),
        "unkept": counts.unkept,
        "last_seal": counts.last_seal,
        "unsealed_since": stamp(counts.unsealed_since),
        "orphans": counts.orphans.count,
        "orphans_oldest_seconds": round(counts.orphans.oldest.total_seconds()),
        "orphans_deleted": counts.orphans.deleted,
        "orphans_searched_at": stamp(counts.orphans.searched_at),
        "canary": _canary_problem(counts) or ("ok" if counts.canary.passed_at else None),
        "canary_passed_at": stamp(counts.canary.passed_at),
        "troubled": list(counts.troubled_ids),
        "kept_keys": kept_keys,
        "kept_key_ids": kept_key_ids,
        "unmapped_tables": [one.table for one in unmapped],
    }
    if as_json:
        show_json(shown)
    else:
        show_lines(_status_lines({**shown, "reason": counts.brake.reason}))
    if wrong := [*_wrong(counts), *_wrong_tables(unmapped)]:
        fail(" ".join(wrong))


def _wrong_ledger() -> Iterator[str]:
    """Yield a sentence if the ledger keeps everybody from being purged."""
    try:
        with logs_aside():
            services().restore.refuse_after_restore()
    except DatabaseBehind:
        yield f"{LedgerAhead()} Nobody is purged until then."
    except (LedgerGone, LedgerUnreadable) as exc:
        yield f"{OBSTACLES[STOPS[type(exc)]]} Nobody is purged until then."


def _wrong(counts: Status) -> Iterator[str]:
    """Yield a sentence for each kind of account that waits for a person, and what ends it."""
    yield from _wrong_ledger()
    if counts.stuck:
        accounts = count(counts.stuck, "account is", "accounts are")
        yield f"{accounts} stuck. `accounts show ID` says why."
    again = counts.failing_again - counts.stuck
    if again > 0:
        yield (
            f"The purge of {count(again, 'account has', 'accounts have')} failed more than once. "
            "`accounts show ID` says why."
        )
    if counts.owes_what_is_late:
        yield "The outbox owes what has failed or is late: the table says what, and since when."
    if counts.unkept:
        lines = count(counts.unkept, "return or hold is", "returns and holds are")
        yield f"{lines} not in the ledger yet: a restore would lose it. `ledger verify` says why."
    if counts.orphans.is_refused:
        yield (
            "More files are nobody's than accounts show, so none is deleted by schedule: is it "
            "the right database? `avatars orphans` lists them."
        )
    if problem := _canary_problem(counts):
        yield f"The canary {problem}: `accounts canary` makes another."
    if counts.unexplained:
        accounts = count(counts.unexplained, "account is", "accounts are")
        yield (
            f"{accounts} unexplained: nobody has promised the purge. "
            "`accounts list --state unexplained` names them, `accounts accept` ends it."
        )


def _wrong_tables(unmapped: Sequence[Unmapped]) -> Iterator[str]:
    """Yield a sentence about the tables that may fail purges, if there are any."""
    if refer := [one.table for one in unmapped if one.refers]:
        tables = count(len(refer), "table refers", "tables refer")
        yield (
            f"{tables} to accounts and are on no data map, so purges may fail: {', '.join(refer)}."
            if len(refer) > 1
            else f"{tables} to accounts and is on no data map, so purges may fail: {refer[0]}."
        )


def _canary_problem(counts: Status) -> str | None:
    return counts.canary.problem(counts.at, is_daily=services().settings.canary)


def _what_stops(counts: Status) -> Iterator[str]:
    """Yield a sentence for each thing that keeps people from being purged, and what ends it."""
    if counts.paused_at is not None:
        yield paused(counts.paused_at)
    if counts.brake.held_at is not None:
        yield braked(counts.brake.held_at, counts.braked)
    if counts.clock_moved_at is not None:
        yield clock_moved(counts.clock_moved_at)
    differs = services().clocks.differ()
    if differs is not None:
        yield clocks_differ(differs)


def _status_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    states = ("active", "deactivated", "due", "held", "failing", "stuck", "braked", "unexplained")
    yield from table(["ACCOUNTS", "STATE"], ((shown[name], _STATES[name]) for name in states))
    yield ""
    yield from fields(
        {
            "overdue": duration(timedelta(seconds=shown["overdue_seconds"])),
            "failing or stuck": _ids(shown["troubled"], shown["failing"] + shown["stuck"]),
            "last purge at": shown["last_purged_at"],
            "last sweep at": shown["swept_at"],
            "paused since": shown["paused_at"],
            "stopped by the clock since": shown["clock_moved_at"],
            "brake holds since": shown["braked_at"],
            "left of what was allowed": shown["allowed"] or None,
            "because": shown["reason"] if shown["allowed"] else None,
            "purges under way": _under_way(shown),
            "receipts to scrub": shown["unscrubbed"],
            "returns and holds not in the ledger": shown["unkept"] or None,
            "last seal": shown["last_seal"],
            "not sealed since": shown["unsealed_since"],
            "files that are nobody's": _orphans(shown),
            "last canary passed at": shown["canary_passed_at"],
            "mails delayed": sum(shown["delayed"].values()),
            "mails refused": sum(shown["refused"].values()) or None,
            "tables on no data map": ", ".join(shown["unmapped_tables"]) or None,
            "kept keys of accounts": _ids(shown["kept_key_ids"], shown["kept_keys"]),
        }
    )
    yield ""
    if not shown["owed"]:
        yield "The outbox owes nothing."
        return
    owed = sorted(shown["owed"].items())
    failing, oldest = shown["owed_failing"], shown["owed_oldest_seconds"]
    yield from table(
        ["OWED", "FAILING", "SINCE", "WHAT", "KIND"],
        (
            (
                number,
                failing.get(kind, 0),
                duration(timedelta(seconds=oldest[kind])),
                _what(kind, shown["paused"]),
                kind,
            )
            for kind, number in owed
        ),
    )


def _under_way(shown: Mapping[str, Any]) -> str | None:
    """Return how many purges are not completed, and for how long the oldest has not been."""
    number, seconds = shown["under_way"], shown["oldest_under_way_seconds"]
    return f"{number}, the oldest for {duration(timedelta(seconds=seconds))}" if number else None


def _orphans(shown: Mapping[str, Any]) -> str | None:
    """Return how many files are in quarantine, and for how long; None if there is none."""
    if not shown["orphans"]:
        return None
    oldest = duration(timedelta(seconds=shown["orphans_oldest_seconds"]))
    return f"{shown['orphans']} in quarantine, the oldest for {oldest}"


def _ids(named: Sequence[int], number: int) -> str:
    """Return the ids of *named* accounts, and how many of all *number* they leave out."""
    ids = ", ".join(map(str, named))
    unnamed = number - len(named)
    return f"{ids} and {unnamed} more" if unnamed > 0 else ids


def _what(kind: str, paused: Mapping[str, int]) -> str | None:
    words = EFFECTS.get(kind)
    return f"{words}, paused" if words and kind in paused else words


_STATES = {
    "active": "active",
    "deactivated": "deactivated, in their grace period",
    "due": "due",
    "held": "  of these on hold",
    "failing": "  of these failing",
    "stuck": "  of these stuck",
    "braked": "  of these waiting for the brake",
    "unexplained": "unexplained, due or not: not purged",
}

# Every kind of effect has its words; a kind without words is shown with a dash.
EFFECTS = {
    queue.DELETE_FILE: "files to delete",
    queue.LEDGER: "batches for the ledger",
    queue.KEEP: "returns and holds for the ledger",
    queue.REMOVE: "returns and holds to take out of the ledger",
    queue.FINISH: "purges to complete",
    notices.SCHEDULED: "mails: the account will be purged",
    notices.DATE_MOVED: "mails: the purge is later",
    notices.REMINDER: "mails: the purge is near",
    notices.REACTIVATED: "mails: the account is back",
    notices.PURGED: "mails: the account is purged",
    notices.ADDRESS_ASKED: "mails: another address was asked for",
    notices.CONFIRM_ADDRESS: "mails: link to confirm another address",
    notices.ADDRESS_CHANGED: "mails: the address is another",
    notices.PASSWORD_CHANGED: "mails: the password is another",
    notices.PASSWORD_RESET: "mails: link for a new password",
}
