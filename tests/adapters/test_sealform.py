"""A header has one text, one head, and a signature that nobody without the key can make."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from accountsvc.adapters import sealform
from accountsvc.adapters.ledgerseal import SealKeys, key_name
from accountsvc.adapters.sealform import Header, Link
from accountsvc.errors import StoreUnavailable
from tests.support.ledgers import OTHER_KEY, keys

HEADER = Header(
    chain=uuid.UUID(int=1),
    number=7,
    sealed_at=datetime(2026, 11, 28, 9, 30, 15, 6, tzinfo=UTC),
    events=(1, 12),
    facts=(1, 0),
    entries=12,
    root="ab" * 32,
    records="cd" * 32,
    previous="ef" * 32,
    key=key_name(keys().public[0]),
    continues=Link(uuid.UUID(int=2), 6, "01" * 32),
)


def test_a_header_has_one_text_which_anybody_can_read() -> None:
    text = HEADER.text()

    assert Header.read(text) == HEADER
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(text)["sealed_at"] == "2026-11-28T09:30:15.000006Z"
    for other in (text + b" ", text.replace(b'"form":1', b'"form":2'), b"[]", b"{}", b"\xff", b""):
        with pytest.raises(ValueError):
            Header.read(other)


def test_a_signature_is_of_one_text_by_one_known_key() -> None:
    ours, text = keys(), HEADER.text()

    signature = sealform.sign(ours, text)

    assert sealform.is_signed(ours, text, signature, HEADER.key)
    another = replace(HEADER, number=8).text()
    assert not sealform.is_signed(ours, another, signature, HEADER.key)
    assert not sealform.is_signed(keys(OTHER_KEY), text, signature, HEADER.key)
    assert not sealform.is_signed(ours, text, sealform.sign(keys(OTHER_KEY), text), HEADER.key)
    for damaged in ("", "é", signature[:-1], signature + "=", signature[:-3] + "h=="):
        assert not sealform.is_signed(ours, text, damaged, HEADER.key)


def test_a_process_without_a_signing_key_signs_nothing_and_checks_all_the_same() -> None:
    text = HEADER.text()
    signature, public = sealform.sign(keys(), text), SealKeys(None, keys().public)

    with pytest.raises(StoreUnavailable):
        sealform.sign(public, text)

    assert sealform.is_signed(public, text, signature, HEADER.key)
