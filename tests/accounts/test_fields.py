"""What a field may hold: an address that can be mailed, a name that is seen, a strong password."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable

import idna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError
from marshmallow.validate import Email

from accountsvc.accounts import fields
from accountsvc.accounts.fields import field_problems, password_problems
from accountsvc.accounts.guesses import CONTEXT_WORDS
from accountsvc.adapters.mail import MailRefused, mailbox
from accountsvc.bounds import (
    EMAIL_CHARACTERS,
    PASSWORD_CHARACTERS,
    STRENGTH_CHARACTERS,
    STRENGTH_LOOKUPS,
)
from tests.support.addresses import is_email
from tests.support.work import note_work

check = Email()


# What Unicode sets aside to be ignored by whatever draws a text (DerivedCoreProperties.txt).
RANGES = (
    "00AD 034F 061C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F "
    "FEFF FFA0 FFF0-FFF8 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"
)
IGNORED = {
    chr(code)
    for one in RANGES.split()
    for code in range(int(one.partition("-")[0], 16), int(one.rpartition("-")[2], 16) + 1)
}


def in_marshmallows_letters(text: str) -> str:
    """Leave out the marks of letters before the "@", and bring letters behind it into its plane."""
    name, at, domain = text.rpartition("@")
    kept = ""
    for character in name:
        if unicodedata.category(character)[0] != "M" or not kept[-1:].isalnum():
            kept += character
    return kept + at + re.sub("[\U00010000-\U0010ffff]", "文", domain)


def is_accepted(text: str) -> bool:
    """Say what is an address in marshmallow's words, if it knew every letter of every script."""
    text = in_marshmallows_letters(text)
    try:
        check(text)
    except ValidationError:
        return False
    return not re.search(r'[\s<>,;:"\\()\[\]]', text)


# Whatever either grammar names, its neighbours, and what differs in case, script or width.
CHARACTERS = st.sampled_from(
    "aAkKsSiIzZ09-_.@!#$%&'*+/=?^`{|}~\"\\()<>[],;: \t\n\r\v\f\0\x1c\x1f\x7f\x80\x85\xa0\xa1\xb5"
    "äßÄıİſKÅΩжα٣１ａ．＠·－\u0300\u1680\u180e\u200b\u2003\u2028\u202f\u3000\ud800\udfff"
    "\ufeff\ufffd\ufffe\uffff\U00010000\U0001d7d8\U0001f40e\U0010ffff"
)
TEXTS = st.text(CHARACTERS | st.characters(exclude_categories=()), max_size=12)

# Texts that are addresses, most of them, ...
ATOMS = st.text(st.sampled_from("abZ0-_é+'"), min_size=1, max_size=8)
LABELS = st.one_of(
    st.text(st.sampled_from("abZ0é－"), min_size=1, max_size=5),
    st.integers(61, 65).map("x".__mul__),
    st.sampled_from(["a-b", "a--b", "-a", "a-", "xn--p1ai"]),
)
ENDS = st.sampled_from(["org", "museum", "x1", "-a", "a-", "é文", "1", "c", "xn--p1ai"])
HOSTS = st.one_of(
    st.builds("{}.{}".format, st.lists(LABELS, min_size=1, max_size=3).map(".".join), ENDS),
    st.sampled_from(["localhost", "LOCALHOST", "org"]),
)
ADDRESSES = st.builds("{}@{}".format, st.lists(ATOMS, min_size=1, max_size=3).map(".".join), HOSTS)


@st.composite
def edited_addresses(draw: st.DrawFn) -> str:
    """... those with one character put in or replaced, anywhere, ..."""
    text = draw(ADDRESSES)
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(CHARACTERS) + text[place + draw(st.integers(0, 1)) :]


# ... and the forms that marshmallow knows beside them.
OCTETS = st.integers(0, 300).map(str) | st.sampled_from(["", "00", "025", "٣"])
LITERALS = st.lists(OCTETS, min_size=3, max_size=5).map(lambda octets: f"[{'.'.join(octets)}]")
QUOTED = st.text(st.sampled_from('ab\\" \x01\x0b'), max_size=6).map('"{}"'.format)
OTHERS = st.builds("{}@{}".format, QUOTED | ATOMS | TEXTS, LITERALS | HOSTS | TEXTS) | TEXTS


def can_be_mailed(text: str) -> bool:
    """Say whether what marshmallow takes for an address has a domain that servers know."""
    name, _, domain = text.rpartition("@")
    try:
        mapped = domain.lower() if domain.isascii() else idna.uts46_remap(domain, std3_rules=False)
        labels = [
            label if label.isascii() else idna.encode(label).decode() for label in mapped.split(".")
        ]
    except UnicodeError:
        return False
    is_host = all(re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(?<!-)", label) for label in labels)
    is_name = labels == ["localhost"] or (len(labels) > 1 and not labels[-1].isdigit())
    return is_host and is_name and "=?" not in name


def can_sign_up(text: str) -> bool:
    """Say whether what can be mailed hides nothing, fits, and has a domain that can be there."""
    name, _, domain = text.rpartition("@")
    is_seen = IGNORED.isdisjoint(name) and IGNORED.isdisjoint(re.sub("[\u200c\u200d]", "", domain))
    labels = unicodedata.normalize("NFKC", domain).lower().split(".")
    return is_seen and len(name.encode()) <= 64 and all(map(is_decoded, labels))


def is_decoded(label: str) -> bool:
    """Say whether *label* is no Punycode, or that of some letter."""
    if not label.startswith("xn--"):
        return True
    try:
        decoded = label[4:].encode("ascii").decode("punycode")
    except UnicodeError:
        return False
    return decoded != "" and decoded.encode("punycode").decode() == label[4:]


@settings(max_examples=2000, deadline=None)
@given(st.one_of(ADDRESSES, edited_addresses(), OTHERS))
def test_an_address_is_what_marshmallow_takes_in_every_script_and_can_be_mailed(text: str) -> None:
    assert is_email(text) is (is_accepted(text) and can_be_mailed(text) and can_sign_up(text))


@pytest.mark.parametrize(
    "frame", ["{}@example.org", "a{}b@example.org", "a@{}.org", "a@b{}c.org", "a@b.{}", "a@b.o{}g"]
)
def test_every_character_is_accepted_in_the_same_places(frame: str) -> None:
    # All of the basic plane, in which both grammars have their bounds, and some of each other one.
    texts = [frame.format(chr(code)) for code in (*range(0x10000), *range(0x10000, 0x110000, 97))]

    expected = [
        text for text in texts if is_accepted(text) and can_be_mailed(text) and can_sign_up(text)
    ]

    assert list(filter(is_email, texts)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a=?b@example.org",
        "=?utf-8?q?ann?=@example.org",
        "ann@-example.org",
        "ann@example.-org",
        "ann@example.org-",
        "ann@❤.example",
        "ann@exam\u202eple.org",
        "ann@10.0.0.10",
        "ann@example.123",
        "ann@א1a.example",
        "ann@" + "ü" * 60 + ".example",
        "ann@" + ".".join(["ü" * 20] * 11) + ".org",
        "é" * 125 + "@example.org",
        "文" * 81 + "@example.org",
    ],
)
def test_what_no_server_could_be_given_is_no_address(text: str) -> None:
    assert len(text) <= EMAIL_CHARACTERS

    assert not is_email(text)
    with pytest.raises(MailRefused):
        mailbox(text)
    assert field_problems({"email": text}) == {"email": ["Enter a valid email address."]}


@pytest.mark.parametrize(
    "text",
    [
        "ann@ab--cd.example",
        "ann@xn--ls8h.la",
        "ann@sub.büro\u3002example.org",
        "é" * 32 + "@example.org",
        "a?=b@example.org",
        "ΣΟΦΟΣ@παράδειγμα.ελ",
    ],
)
def test_what_a_server_can_be_given_may_sign_up(text: str) -> None:
    assert is_email(text)
    assert mailbox(text).username == text.partition("@")[0]


HINDI, THAI, TAMIL, ARABIC = "हिन्दी", "ส\u0e34ริกิต\u0e34\u0e4c", "தமிழ்", "مُحَمَّد"


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}@example.org" for name in (HINDI, THAI, TAMIL, ARABIC, "J\u030c1", "שָׁלוֹם")),
        f"{HINDI}.{TAMIL}-1@{HINDI}.example",
        "\U0001e922\U0001e944@example.org",
        "x\u20dd@example.org",
        "ann@𠮷野家.example",
        "ann@\U0001e922\U0001e944.example",
        "ann@𐐀𐐁.example",
        "ann@ශ්\u200dරී.example",
    ],
)
def test_an_address_in_every_script_may_sign_up_with_the_marks_of_its_letters(text: str) -> None:
    assert field_problems({"email": text}) == {}
    assert mailbox(text).username == text.partition("@")[0]


@pytest.mark.parametrize(
    "text",
    [
        "\u0301ann@example.org",
        "ann.\u0301b@example.org",
        "\u093f@example.org",
        "ann-\u0e34@example.org",
        "_\u0301@example.org",
        "ann!\u0308\u0308@example.org",
        "ann@\u0301a.example",
        "ann@😀.example",
    ],
)
def test_a_mark_without_a_letter_and_a_picture_are_no_part_of_an_address(text: str) -> None:
    assert field_problems({"email": text}) == {"email": ["Enter a valid email address."]}
    with pytest.raises(MailRefused):
        mailbox(text)


@pytest.mark.parametrize(
    "text",
    [
        "ann\u200b@example.org",
        "\u2060ann@example.org",
        "a\u034fnn@example.org",
        "ann\ufe0f@example.org",
        "\u115fann@example.org",
        "é\U000e0100@example.org",
        "क्\u200cष@example.org",
        "می\u200cخواهم@example.org",
        "ann@exam\u00adple.org",
        "ann@example.o\u200brg",
        "ann@exam\u2060ple.org",
        "ann@exam\ufeffple.org",
        "ann@bü\ufe0fcher.example",
    ],
)
def test_an_address_with_a_character_that_nobody_sees_is_refused_and_the_character_is_named(
    text: str,
) -> None:
    (hidden,) = IGNORED & set(text)

    assert field_problems({"email": text}) == {
        "email": [f"Remove invisible characters, such as U+{ord(hidden):04X}."]
    }


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("x" * 64, True),
        ("x" * 65, False),
        ("é" * 32, True),
        ("é" * 32 + "x", False),
        ("e\u0301" * 21 + "e", True),
        ("e\u0301" * 21 + "é", False),
        ("मि" * 11, False),
        ("x" * 32 + "." + "x" * 32, False),
    ],
)
def test_a_name_of_more_octets_than_every_server_takes_is_mailed_and_does_not_sign_up(
    name: str, fits: bool
) -> None:
    text = f"{name}@example.org"

    sentence = "Use at most 64 bytes before the @: letters outside ASCII have 2 to 4."
    assert field_problems({"email": text}) == ({} if fits else {"email": [sentence]})
    assert mailbox(text).username == name


@pytest.mark.parametrize(
    ("domain", "exists"),
    [
        ("xn--0.org", False),
        ("XN--0.org", False),
        ("sub.xn--zzzzzz.example", False),
        ("example.xn--99999999", False),
        ("ｘn--0.example", False),
        ("bücher.xn--0.example", False),
        ("xn--n3h.example", True),
        ("xn--ls8h.la", True),
        ("Xn--BCHER-kva.example", True),
        ("example.xn--p1ai", True),
        ("ab--cd.example", True),
        ("axn--0.example", True),
    ],
)
def test_a_label_that_is_not_even_punycode_is_mailed_and_does_not_sign_up(
    domain: str, exists: bool
) -> None:
    text = f"a@{domain}"

    assert field_problems({"email": text}) == (
        {} if exists else {"email": ["Enter a valid email address."]}
    )
    assert mailbox(text).username == "a"


# Names of accounts


@pytest.mark.parametrize(
    "name",
    [
        "\u200b", "\u3164", "\u00ad", "\u2060\ufeff", "\u2800", "\u115f\u1160", "\uffa0",
        "\u200d\u200c", "\ufe0f", "\u0301", "\ufffc", "\U00013441", "\U00016fe4", "\u034f", "\U000e0041", "\U000e0100", "\U0001d159",
    ],
)  # fmt: skip
def test_a_username_without_a_character_that_is_seen_is_refused(name: str) -> None:
    assert field_problems({"username": name}) == {
        "username": ["Use at least one character that can be seen."]
    }


@pytest.mark.parametrize(
    "character", ["\u202e", "\u202d", "\u2066", "\u2067", "\u2068", "\u2069", "\u200f", "\u061c"]
)
def test_a_username_that_turns_around_what_stands_beside_it_is_refused(character: str) -> None:
    for name in (character, f"ann{character}gnp", f"{character}שלום"):
        assert field_problems({"username": name}) == {
            "username": ["Remove characters that change the direction of the text."]
        }


@pytest.mark.parametrize("spaces", ["  ", " \u00a0", "\u3000\u2003", "   "])
def test_a_username_with_spaces_of_which_a_page_shows_one_is_refused(spaces: str) -> None:
    problem = {"username": ["Use one space between words."]}

    assert field_problems({"username": f"ann{spaces}lee"}) == problem
    assert field_problems({"username": " ann lee "}) == {}


@pytest.mark.parametrize("character", ["\u2028", "\u2029"])
def test_a_username_of_two_lines_is_refused(character: str) -> None:
    assert field_problems({"username": f"ann{character}bob"}) == {
        "username": ["Remove line and paragraph separators."]
    }


@pytest.mark.parametrize(
    "name",
    [
        "ann",
        "王小明",
        "שלום",
        "👩\u200d👧",
        "می\u200cخواهم",
        "e\u0301",
        "각",
        HINDI,
        "क्\u200dष",
        "क्\u200cष",
        "අනි\u0dca\u200d",
        "میخ\u200cها",
        "ann 👩🏽\u200d🚀",
        "👨\u200d👩\u200d👧\u200d👦",
        "…",
        "€",
    ],
)
def test_a_username_that_is_seen_is_taken_in_every_script(name: str) -> None:
    assert field_problems({"username": name}) == {}


@pytest.mark.parametrize(
    "character",
    [
        *"\u200b\u00ad\u2060\ufeff\u180e\ufe0f\u034f\u115f\u3164\uffa0\u17b4\u180b\u2062\u2800\ufffa",
        *"\ufffc\U00013430\U00013441\U00013442\U00016fe4",
        *"\U000e0001\U000e0041\U000e0100\U0001d173\U0001d159\U0001bca0\u200c\u200d",
    ],
)
def test_a_username_with_a_character_that_nobody_sees_beside_others_is_refused(
    character: str,
) -> None:
    problem = {"username": [f"Remove invisible characters, such as U+{ord(character):04X}."]}

    for name in (f"st1{character}", f"st{character}1", f"{character}st1", f"王{character}明"):
        assert field_problems({"username": name}) == problem


@pytest.mark.parametrize(
    "name",
    [
        "क्\u200d\u200dष",
        "क्\u200c",
        "क्\u200cx",
        "می\u200c\u200cخواهم",
        "می\u200c",
        "دا\u200cد",
        "می\u200dخواهم",
        "an\u200dn",
        "👩\u200d🍎",
        "👧\u200d👩",
        "👩\u200d",
        "👩\u200d👧\u200d\u200d👦",
        "😀\u200d😀",
    ],
)
def test_a_joiner_that_joins_nothing_is_a_character_that_nobody_sees(name: str) -> None:
    (problem,) = field_problems({"username": name})["username"]

    assert problem.startswith("Remove invisible characters, such as U+200")


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("ann@example.org", True),
        ("ann@localhost", True),
        ("ann.o'neil+tag@sub.example.org", True),
        ("änne@exämple.org", True),
        ("ann@" + "x" * 63 + ".org", True),
        ("ann@" + "x" * 64 + ".org", False),
        ("ann@example", False),
        ("ann@example.o", False),
        (".ann@example.org", False),
        ("ann.@example.org", False),
        ("ann@-example.org", False),
        ("ann@example.org\n", False),
        ("ann@ex\u3000ample.org", False),
        ('"ann"@example.org', False),
        ("ann@[127.0.0.1]", False),
    ],
)
def test_what_is_an_address(text: str, accepted: bool) -> None:
    assert is_email(text) is accepted
    assert is_accepted(text) is accepted


STRONG = "nine purple otters sing "


@pytest.mark.parametrize(
    ("password", "taken"),
    [
        (STRONG, True),
        (STRONG + "a" * 100, True),
        # The beginning is easy to guess: what follows is not seen.
        ("a" * STRENGTH_CHARACTERS + STRONG, False),
        ("a" * (STRENGTH_CHARACTERS - len(STRONG)) + STRONG, True),
        ("password" * 8 + STRONG, False),
        ("ann lee " * 8 + STRONG, False),
    ],
)
def test_a_password_is_judged_by_its_beginning(password: str, taken: bool) -> None:
    problems = password_problems("password", password, {"first_name": "ann lee "})

    assert problems == (
        {}
        if taken
        else {"password": ["This password is too easy to guess. Add more words or characters."]}
    )


@pytest.mark.parametrize("words", [1, 5])
@pytest.mark.parametrize("length", [8, STRENGTH_CHARACTERS, 65, PASSWORD_CHARACTERS])
def test_zxcvbn_is_given_no_more_than_the_beginnings(
    monkeypatch: pytest.MonkeyPatch, length: int, words: int
) -> None:
    work = note_work(monkeypatch)

    password = ("xkq" * PASSWORD_CHARACTERS)[:length]
    password_problems("new_password", password, {str(n): "y" * 254 for n in range(words)})

    seen = min(length, STRENGTH_CHARACTERS)
    ours = [len(word) for word in CONTEXT_WORDS]
    assert work.judged == [seen, *ours, *[STRENGTH_CHARACTERS] * words]


# zxcvbn's own table: which signs it reads as which letter.
SIGNS = {
    "a": "4@", "b": "8", "c": "({[<", "e": "3", "g": "69", "i": "1!|", "l": "1|7", "o": "0",
    "s": "$5", "t": "+7", "x": "%", "z": "2",
}  # fmt: skip
EVERY_SIGN = "".join(sorted(set("".join(SIGNS.values()))))


def readings(text: str) -> int:
    """Count the ways to read the signs of *text* as letters, one sign for each letter."""
    choices = [[sign for sign in signs if sign in text] or [""] for signs in SIGNS.values()]
    return sum(1 for _ in itertools.product(*choices))


@pytest.mark.parametrize(
    "password",
    [
        EVERY_SIGN * 7,
        EVERY_SIGN[::-1] * 7,
        "p4ssw0rd1!|$5+7" * 9,
        "({[<4@69$5" * 13,
        "aeiou" * 10 + EVERY_SIGN * 3,
        "nine lively badgers sing",
    ],
)
def test_zxcvbn_looks_up_a_bounded_number_of_pieces(
    monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """It holds the interpreter meanwhile: the worst password of 64 characters takes 0.4 s."""
    judged: list[str] = []
    zxcvbn = fields.zxcvbn

    def note(text: str, known: list[str]) -> object:
        judged.append(text)
        return zxcvbn(text, known)

    monkeypatch.setattr(fields, "zxcvbn", note)

    password_problems("password", password[:PASSWORD_CHARACTERS], {})

    (seen,) = judged
    assert readings(seen) * len(seen) ** 2 <= STRENGTH_LOOKUPS
    longer = password[: len(seen) + 1]
    is_whole = len(seen) in {len(password), STRENGTH_CHARACTERS}
    assert is_whole or readings(longer) * len(longer) ** 2 > STRENGTH_LOOKUPS


@pytest.mark.parametrize(
    ("password", "taken"),
    [
        (EVERY_SIGN, True),
        (EVERY_SIGN[::-1] * 6, True),
        ("P@$$w0rd", False),
        ("1234567890!@#$%^&*()", False),
        ("p4$$w0rd" * 8 + EVERY_SIGN, False),
    ],
)
def test_signs_make_no_weak_password_strong_and_no_strong_one_weak(
    password: str, taken: bool
) -> None:
    assert (password_problems("password", password, {}) == {}) is taken


def parts(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "typed", ["\u00e97$k!z\u00e0", parts("\u00e97$k!z\u00e0"), parts("\uac01" * 7)]
)
def test_a_character_in_parts_is_one_character_of_a_password(typed: str) -> None:
    assert password_problems("password", typed, {}) == {"password": ["Use at least 8 characters."]}


@pytest.mark.parametrize(
    "name", ["Zo\u00e9 Br\u00fbl\u00e9e", "Nguy\u1ec5n H\u1ed3ng \u0110\u1ee9c"]
)
@pytest.mark.parametrize("kept", [parts, str])
@pytest.mark.parametrize("typed", [parts, str])
def test_a_name_is_seen_in_a_password_that_is_typed_otherwise(
    name: str, kept: Callable[[str], str], typed: Callable[[str], str]
) -> None:
    profile = {"first_name": kept(name)}

    assert list(password_problems("password", typed(name), profile)) == ["password"]
    assert password_problems("password", typed(f"{name} {STRONG}"), profile) == {}


@pytest.mark.parametrize(("spare", "taken"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("letter", ["\u00e9", "\ud55c", "\u1f82"])
def test_a_password_is_as_long_as_it_is_normalised(letter: str, spare: int, taken: bool) -> None:
    whole = STRONG + letter * (PASSWORD_CHARACTERS - len(STRONG) + spare)

    for typed in (whole, parts(whole)):
        problems = password_problems("new_password", typed, {})

        assert problems == ({} if taken else {"new_password": ["Use at most 128 characters."]})


@pytest.mark.parametrize("password", ["", "short", "x" * 129, "\0" * 60_000, "\ud800" * 20])
def test_zxcvbn_is_not_asked_about_what_is_refused_anyway(
    monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    work = note_work(monkeypatch)

    assert password_problems("password", password, {})
    assert work.judged == []
