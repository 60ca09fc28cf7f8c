"""A kind of mail that is half made is found here, and not when its first mail waits for good."""

from __future__ import annotations

from importlib.resources import files

from accountsvc.outbox import delivery, notices

TEMPLATES = files("accountsvc") / "templates" / "mail"


def test_each_kind_of_mail_has_its_template_and_its_decision() -> None:
    kinds = {
        name: value
        for name, value in vars(notices).items()
        if isinstance(value, str) and value.startswith("mail.")
    }

    gaps = [
        f"{name} is not in KINDS of accountsvc/outbox/notices.py, so nothing delivers it: add it"
        for name, kind in kinds.items()
        if kind not in notices.KINDS
    ]
    for kind in notices.KINDS:
        template = f"{kind.removeprefix('mail.')}.txt"
        if not (TEMPLATES / template).is_file():
            gaps.append(f"{kind} has no text: write accountsvc/templates/mail/{template}")
        if kind != notices.PURGED and kind not in delivery.DECISIONS:
            gaps.append(
                f"{kind} has no decision: say in DECISIONS of accountsvc/outbox/delivery.py "
                "whether it still applies when it is delivered, and to whom it goes"
            )

    assert not gaps, "\n".join(gaps)
