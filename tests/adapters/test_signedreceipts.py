"""What a signed receipt proves, to the command and to the script that strangers have."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountsvc import readers
from accountsvc.adapters import signedreceipts
from accountsvc.adapters.signedreceipts import Flaw, NotAReceipt, key_set, keys_in
from accountsvc.db import proofs
from accountsvc.start import Failure
from accountsvc.start.receipts import report
from tests.support.ledgers import KEY, OTHER_KEY
from tests.support.papers import ANN, BOB, Paper, canonical, fact, paper, receipt, sealed
from tests.support.processes import ROOT, environment, run

SCRIPT = ROOT / "docs" / "verify_receipt.py"
PUBLIC, OTHER_PUBLIC = readers.public_key_of(KEY), readers.public_key_of(OTHER_KEY)
FACTS = [fact("files_absent"), fact("told"), fact("verified", places=12)]

Change = Callable[[Paper], None]


@pytest.fixture(scope="module")
def script() -> Callable[[str, str], str | None]:
    """The script's own `main`: None if all is proved, else the reason, with which it ends."""
    main: Callable[[str, str], str | None] = runpy.run_path(str(SCRIPT))["main"]
    return main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("papers")
    (path / "keys.json").write_text(json.dumps(key_set([OTHER_PUBLIC, PUBLIC])))
    return path


def said_by_script(
    script: Callable[[str, str], str | None], folder: Path, text: bytes
) -> str | None:
    (folder / "receipt.json").write_bytes(text)
    return script(str(folder / "receipt.json"), str(folder / "keys.json"))


def is_proved(text: bytes) -> bool:
    """Whether the command proves all of it."""
    try:
        parts = signedreceipts.check(text, [OTHER_PUBLIC, PUBLIC])
    except NotAReceipt:
        return False
    return all(part.flaw is None for part in parts)


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


# What is right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [*range(9), 12, 100])
def test_each_entry_of_a_tree_of_any_size_is_proved_and_not_at_another_place(
    beside: int, script: Callable[[str, str], str | None], folder: Path
) -> None:
    """The trees of these tests are made by the words of RFC 9162, and not by our code."""
    whole = paper(beside=beside)
    (index,) = [whole["receipt"]["index"]]

    for place in {-1, 0, 1, index - 1, index, index + 1, 2 * index + 1}:
        text = encoded({**whole, "receipt": {**whole["receipt"], "index": place}})

        assert is_proved(text) is (place == index)
        assert (said_by_script(script, folder, text) is None) is (place == index)


def test_a_whole_receipt_is_proved_with_its_seals(
    script: Callable[[str, str], str | None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = encoded(paper(facts=FACTS))

    parts = signedreceipts.check(text, [PUBLIC])
    refusal = said_by_script(script, folder, text)

    assert [part.name for part in parts] == ["the receipt", "fact 1", "fact 2", "fact 3"]
    assert [part.flaw for part in parts] == [None] * 4
    assert [part.seal.number for part in parts if part.seal] == [1, 2, 2, 2]
    assert parts[0].entry["public_id"] == ANN
    assert refusal is None
    printed = capsys.readouterr().out
    for entry in (receipt(), *FACTS):
        assert entry in printed


# What is forged ----------------------------------------------------------------------------------


def later(document: Paper) -> None:
    part = document["receipt"]
    part["entry"] = part["entry"].replace("2026-11-15T09:30:02", "2026-10-15T09:30:02")


def another_path(document: Paper) -> None:
    document["receipt"]["path"] = document["facts"][0]["path"]


def swapped_signature(document: Paper) -> None:
    document["receipt"]["seal"]["signature"] = document["facts"][0]["seal"]["signature"]


def unknown_key(document: Paper) -> None:
    document["facts"][1] = sealed([FACTS[1]], key=bytes(range(64, 96)))[0]


def names_a_known_key(document: Paper) -> None:
    """Signed by a stranger who says that it was a key that is known."""
    (forged,) = sealed([FACTS[1]], key=bytes(range(64, 96)))
    header = json.loads(forged["seal"]["header"])
    known = json.loads(document["receipt"]["seal"]["header"])["key"]
    forged["seal"]["header"] = canonical({**header, "key": known})
    document["facts"][1] = forged


def of_somebody_else(document: Paper) -> None:
    document["facts"][1] = sealed([fact("completed", BOB)])[0]


def a_fact_as_receipt(document: Paper) -> None:
    document["receipt"] = sealed([fact("completed")])[0]


def a_receipt_as_fact(document: Paper) -> None:
    document["facts"][1] = sealed([receipt().replace('"files":1', '"files":2')])[0]


def not_sealed(document: Paper) -> None:
    document["facts"][1] |= {"seal": None, "path": [], "index": None}


def upper_case(document: Paper) -> None:
    document["receipt"]["path"][0] = document["receipt"]["path"][0].upper()


def spelled_otherwise(document: Paper) -> None:
    """The last letter of a signature of 64 bytes has four bits that decode to nothing."""
    seal = document["receipt"]["seal"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = letters[letters.index(seal["signature"][85]) ^ 1]
    seal["signature"] = f"{seal['signature'][:85]}{last}=="


def too_long_a_path(document: Paper) -> None:
    document["receipt"]["path"].append("0" * 64)


@pytest.mark.parametrize(
    ("forge", "name", "flaw"),
    [
        (later, "the receipt", Flaw.NOT_INCLUDED),
        (another_path, "the receipt", Flaw.NOT_INCLUDED),
        (too_long_a_path, "the receipt", Flaw.NOT_INCLUDED),
        (upper_case, "the receipt", Flaw.BROKEN),
        (swapped_signature, "the receipt", Flaw.BAD_SIGNATURE),
        (spelled_otherwise, "the receipt", Flaw.BAD_SIGNATURE),
        (unknown_key, "fact 2", Flaw.UNKNOWN_KEY),
        (names_a_known_key, "fact 2", Flaw.BAD_SIGNATURE),
        (of_somebody_else, "fact 2", Flaw.OTHER_NUMBER),
        (a_fact_as_receipt, "the receipt", Flaw.OTHER_KIND),
        (a_receipt_as_fact, "fact 2", Flaw.OTHER_KIND),
        (not_sealed, "fact 2", Flaw.UNSEALED),
    ],
)
def test_what_is_forged_or_not_signed_is_named_with_the_reason(
    forge: Change,
    name: str,
    flaw: Flaw,
    script: Callable[[str, str], str | None],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = paper(facts=FACTS)
    forge(document)

    parts = signedreceipts.check(encoded(document), [OTHER_PUBLIC, PUBLIC])
    refusal = said_by_script(script, folder, encoded(document))

    assert {part.name: part.flaw for part in parts if part.flaw is not None} == {name: flaw}
    assert refusal is not None
    assert refusal.lower().startswith(name)
    # It prints what is proved before it, and nothing of what is not.
    forged = document["receipt"] if name == "the receipt" else document["facts"][1]
    assert forged["entry"] not in capsys.readouterr().out


NESTED = b"[" * 100_000
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"Not found.",
    "cut": encoded(paper(facts=FACTS))[:-40],
    "a list": b"[]",
    "a number": b"7",
    "no form": b'{"receipt": {}, "facts": []}',
    "another form": encoded({**paper(), "form": "accountsvc receipt, form 2"}),
    "no receipt": encoded({**paper(), "receipt": None}),
    "no facts": encoded({**paper(), "facts": None}),
    "a fact that is none": encoded({**paper(), "facts": [7]}),
    "an entry that is none": encoded({**paper(), "receipt": {**paper()["receipt"], "entry": 7}}),
    "nested": NESTED,
    "nested within an entry": encoded(
        {**paper(), "receipt": {**paper()["receipt"], "entry": NESTED.decode()}}
    ),
    "no UTF-8": b"\xff\xfe" + encoded(paper()),
    "half a character": encoded(paper()).replace(b"owner", rb"\ud800"),
    "huge": encoded(paper()) + b" " * signedreceipts.MOST_BYTES + b"x",
    "a huge number": encoded(paper()).replace(b'"index": 4', b'"index": ' + b"9" * 5000),
    "a place that is no number": encoded(paper()).replace(b'"index": 4', b'"index": "4"'),
    "an answer of the service": b'{"error": "No receipt has this number.", "code": "x"}',
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_signed_receipt_is_refused_in_a_sentence(
    case: str, script: Callable[[str, str], str | None], folder: Path
) -> None:
    text = BROKEN[case]

    refusal = said_by_script(script, folder, text)

    assert not is_proved(text)
    assert refusal is not None
    assert "\n" not in refusal
    assert "Traceback" not in refusal


# What lies around what is signed ------------------------------------------------------------------

GOOD = encoded(paper(facts=FACTS))


def with_facts(facts: object) -> bytes:
    return encoded({**paper(), "facts": facts})


def around(where: str, **members: object) -> bytes:
    """Add *members* to the document, to a part of it, or to a part's seal."""
    document = paper(facts=FACTS)
    part = document["facts"][1]
    {"document": document, "part": part, "seal": part["seal"]}[where].update(members)
    return encoded(document)


def of_one_leaf(index: object) -> bytes:
    whole = paper(beside=0)
    return encoded({**whole, "receipt": {**whole["receipt"], "index": index}})


# What is refused, and what the command and the script say of it.
AROUND: dict[str, tuple[bytes, str, str]] = {
    "a mark of the byte order": (b"\xef\xbb\xbf" + GOOD, "cut, damaged", "is broken"),
    "another encoding": (GOOD.decode().encode("utf-16"), "cut, damaged", "is broken"),
    "facts in an object": (with_facts({}), "no list of facts", "has other members"),
    "facts in a text": (with_facts(""), "no list of facts", "is broken"),
    "no facts": (
        encoded({name: one for name, one in paper().items() if name != "facts"}),
        "other members",
        "has other members",
    ),
    "a fact twice": (
        with_facts(sealed([FACTS[0]]) * 2),
        f"fact 2 {Flaw.REPEATED.value}",
        "Fact 2 is in it twice",
    ),
    "a fact in two seals": (
        with_facts([*sealed([FACTS[0]]), *sealed([FACTS[0]], number=2)]),
        f"fact 2 {Flaw.REPEATED.value}",
        "Fact 2 is in it twice",
    ),
    "a member of the document": (
        around("document", verified=True),
        "other members",
        "has other members",
    ),
    "a member of a part": (
        around("part", verified=True),
        f"fact 2 {Flaw.BROKEN.value}",
        "has other members",
    ),
    "a member of a seal": (
        around("seal", verified=True),
        f"fact 2 {Flaw.BROKEN.value}",
        "has other members",
    ),
    "a member twice": (
        GOOD.replace(b'{"form"', b'{"form": "accountsvc receipt, form 1", "form"'),
        "a member twice",
        "has other members",
    ),
    "a member of a part twice": (
        GOOD.replace(b'"index": 0', b'"index": 7, "index": 0'),
        "a member twice",
        "has other members",
    ),
    "a place that is a truth": (of_one_leaf(False), Flaw.BROKEN.value, "is not what was signed"),
    "a place with a point": (of_one_leaf(0.0), Flaw.BROKEN.value, "is not what was signed"),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_lies_around_what_is_signed_has_one_form_for_the_command_and_the_script(
    case: str, script: Callable[[str, str], str | None], folder: Path
) -> None:
    text, by_command, by_script = AROUND[case]

    said = refusal_of(text)
    refusal = said_by_script(script, folder, text)

    assert said is not None
    assert by_command in said
    assert refusal is not None
    assert by_script in refusal
    assert refusal.endswith(".")
    for good in (GOOD, with_facts([]), of_one_leaf(0)):
        assert (refusal_of(good), said_by_script(script, folder, good)) == (None, None)


def refusal_of(text: bytes) -> str | None:
    """What the command says of *text*; None: it proves all of it."""
    try:
        lines, proved = report(BytesIO(text), [OTHER_PUBLIC, PUBLIC])
    except Failure as exc:
        return str(exc)
    said = "\n".join(lines)
    return None if proved else said[0].lower() + said[1:].replace("\nFact", "\nfact")


# One byte ----------------------------------------------------------------------------------------

WHOLE = encoded(paper(facts=FACTS[:2]))


@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_no_byte_of_what_is_signed_can_be_another(
    place: int, byte: int, script: Callable[[str, str], str | None], folder: Path
) -> None:
    changed = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    says_the_same = _read(changed) == _read(WHOLE)

    proved = is_proved(changed), said_by_script(script, folder, changed) is None

    # A space for a space, or an escaped character, is the same text.
    assert proved == (says_the_same, says_the_same)


def _read(text: bytes) -> Any:
    """All that a signature vouches for in *text*; None: it has another form."""
    try:
        document = json.loads(text.decode())
        parts = [document["receipt"], *document["facts"]]
        signed = [[part[name] for name in ("entry", "path", "seal")] for part in parts]
        return document["form"], signed, [repr(part["index"]) for part in parts]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


# The command and the script as processes ---------------------------------------------------------


def test_the_script_is_short_and_ends_with_the_answer(folder: Path, tmp_path: Path) -> None:
    document = paper(facts=FACTS)
    (tmp_path / "good.json").write_bytes(encoded(document))
    later(document)
    (tmp_path / "forged.json").write_bytes(encoded(document))

    ended = [
        run("python", str(SCRIPT), *arguments, env=environment(tmp_path), folder=tmp_path)
        for arguments in (
            ("good.json", str(folder / "keys.json")),
            ("forged.json", str(folder / "keys.json")),
            (),
        )
    ]

    assert len(SCRIPT.read_text().splitlines()) <= 60
    assert [one.returncode for one in ended] == [0, 1, 1]
    assert ended[0].stdout.count("signed in seal") == 4
    assert ended[1].stdout == ""
    assert ended[1].stderr == "The receipt is not what was signed.\n"
    assert "verify_receipt.py RECEIPT KEYS" in ended[2].stderr


def test_the_command_needs_no_database_and_no_network_and_ends_with_the_answer(
    folder: Path, tmp_path: Path
) -> None:
    # given
    env = environment(
        tmp_path,
        "postgresql://nobody@127.0.0.1:1/nothing",
        LEDGER_PUBLIC_KEYS=readers.key_text(PUBLIC),
    )
    (tmp_path / "good.json").write_bytes(encoded(paper(facts=FACTS)))
    forged = paper(facts=FACTS)
    of_somebody_else(forged)

    def verify(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        ended = run(
            "accountsvc", "verify-receipt", *arguments, env=env, folder=tmp_path, stdin=stdin
        )
        return ended.returncode, ended.stdout, ended.stderr

    # when
    good = verify("good.json", "--keys", str(folder / "keys.json"))
    bad = verify("-", "--keys", str(folder / "keys.json"), stdin=encoded(forged).decode())
    by_settings = verify("good.json")
    without_keys = verify("good.json", "--keys", "good.json")

    # then
    assert (good[0], good[2]) == (0, "")
    assert (
        good[1].splitlines()[-1] == f"All of this is proved of the number {ANN}, and of no other."
    )
    assert "was erased on 2026-11-15T09:30:02.000000Z" in good[1]
    assert good[1].count("proved by seal") == 4
    assert (bad[0], bad[2]) == (1, "")
    assert "Fact 2 is about another number than the receipt." in bad[1]
    assert bad[1].splitlines()[-1] == "NOT PROVED: fact 2."
    assert BOB not in bad[1]
    assert by_settings[0] == 0
    assert without_keys[0] == 2
    assert "holds no set of Ed25519 keys" in without_keys[2]


# The keys ----------------------------------------------------------------------------------------


def test_the_key_set_is_read_as_it_was_written_and_foreign_keys_are_passed_over() -> None:
    document = key_set([OTHER_PUBLIC, PUBLIC])
    foreign = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "foreign"}

    document["keys"].insert(1, foreign)

    assert keys_in(encoded(document)) == [OTHER_PUBLIC, PUBLIC]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": [7]}', b'{"keys": 7}', NESTED]
)
def test_what_is_no_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="no set of Ed25519 keys"):
        keys_in(text)


def test_every_fact_has_its_sentence() -> None:
    assert set(signedreceipts.SENTENCES) == set(proofs.FACTS)
