"""What a row of the outbox holds, byte for byte: rows of one release are delivered by the next."""

from __future__ import annotations

import json

import pytest

from accountsvc.outbox.payloads import (
    CURRENT,
    PREVIOUS,
    AccountMail,
    AddressedMail,
    FileDeletion,
    Finish,
    LedgerLines,
    Payload,
    PurgedMail,
    ReminderMail,
    ResetMail,
    refusals,
    with_refusals,
)

STORED = [
    (FileDeletion("00ff.webp"), '{"key": "00ff.webp"}'),
    (LedgerLines([{"public_id": "1"}]), '{"lines": [{"public_id": "1"}]}'),
    (Finish(7, ["00ff.webp"]), '{"account_id": 7, "files": ["00ff.webp"], "scrubbed": false}'),
    (AddressedMail("ann@example.org", 2), '{"address": "ann@example.org", "lane": 2}'),
    (
        PurgedMail("ann@example.org", 2, "0" * 32, "2027-02-26T00:00:00Z"),
        f'{{"address": "ann@example.org", "lane": 2, "ledger": "{"0" * 32}",'
        ' "until": "2027-02-26T00:00:00Z"}',
    ),
    (
        AccountMail(3, PREVIOUS, 7, True),
        '{"epoch": 3, "to": "previous", "former": 7, "was_off": true}',
    ),
    (ReminderMail(3, 86400), '{"epoch": 3, "before": 86400}'),
    (ResetMail(3), '{"epoch": 3}'),
]


@pytest.mark.parametrize(("payload", "stored"), STORED)
def test_a_payload_is_stored_with_the_same_keys_in_the_same_order_for_good(
    payload: Payload, stored: str
) -> None:
    assert json.dumps(payload.stored()) == stored


@pytest.mark.parametrize(("payload", "stored"), STORED)
def test_a_stored_payload_is_read_whatever_else_a_newer_release_has_added(
    payload: Payload, stored: str
) -> None:
    assert type(payload).read({**json.loads(stored), "added": 1}) == payload


def test_a_mail_without_a_recipient_is_for_the_current_address() -> None:
    assert AccountMail.read({"epoch": 3}).to == CURRENT


def test_mails_of_the_release_before_name_no_former_address_and_are_of_the_first_lane() -> None:
    assert AccountMail.read({"epoch": 3, "to": "previous"}).former is None
    assert AddressedMail.read({"address": "ann@example.org"}).lane == 0
    assert PurgedMail.read({"address": "ann@example.org"}).ledger is None


def test_a_payload_that_lacks_what_its_kind_needs_is_an_error() -> None:
    with pytest.raises(KeyError, match="key"):
        FileDeletion.read({})


def test_refusals_are_counted_beside_what_the_payload_holds() -> None:
    stored = ResetMail(3).stored()

    again = with_refusals(stored, refusals(stored) + 1)

    assert json.dumps(again) == '{"epoch": 3, "refusals": 1}'
    assert refusals(again) == 1
    assert ResetMail.read(again) == ResetMail(3)
