"""Requests made from the OpenAPI document, right ones and wrong ones, by nobody, an owner and the staff.

``TEST_FUZZ_EXAMPLES`` sets how many of each kind are made for each operation.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import schemathesis
from apiflask import APIFlask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.factories import Person, make_person, new_name, services_of
from tests.support.state import read_account

EXAMPLES = int(os.environ.get("TEST_FUZZ_EXAMPLES", "2"))
# How strong a password is, or whether a name is taken, no schema can say: right data may be refused.
LEFT_OUT = [positive_data_acceptance]

# A name that nobody knows is not wrong: the contract says that it is ignored.
CONFIG = SchemathesisConfig.from_dict({"generation": {"allow-extra-parameters": False}})
# Nothing about these can be wrong: they take nothing, or a text of which any is right.
WITHOUT_INPUT = {
    "GET /healthz",
    "GET /readyz",
    "GET /statusz",
    "GET /metrics",
    "GET /media/avatars/{key}",
    "GET /api/receipts/{number}/",
    "GET /.well-known/accountsvc-keys.json",
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


class Somebody:
    """Who sends the requests: always somebody who is there, whatever the last request did."""

    def __init__(self, app: APIFlask, *, staff: bool) -> None:
        self._app = app
        self._staff = staff
        self._person = self._new()

    def _new(self) -> Person:
        return make_person(services_of(self._app), new_name("fuzz"), staff=self._staff)

    def now(self) -> Person:
        account = read_account(services_of(self._app), self._person.id)
        if account is None or not account.is_active or account.epoch > 0:
            self._person = self._new()
        return self._person


@pytest.mark.timeout(450 * EXAMPLES)
@pytest.mark.parametrize("who", ["nobody", "owner", "staff"])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_document_describes(
    app: APIFlask, who: str, mode: GenerationMode
) -> None:
    somebody = None if who == "nobody" else Somebody(app, staff=who == "staff")
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", app, config=CONFIG)
    operations = [found.ok() for found in schema.get_all_operations()]
    cannot_be_wrong: set[str] = set()
    tried: Counter[str] = Counter()

    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), own=st.booleans())
        def try_it(case: Case, own: bool) -> None:
            tried[case.operation.label] += 1
            if somebody is not None:
                person = somebody.now()
                # On the case, and not beside it: so that it is known to be right now, if it was wrong.
                case.headers.update(person.auth)
                if own and "user_id" in case.path_parameters:
                    case.path_parameters["user_id"] = person.id
                if own and "entry_id" in case.path_parameters:
                    case.path_parameters["entry_id"] = person.passwords[0]
            response = case.call()
            case.validate_response(response, excluded_checks=LEFT_OUT)
            assert "X-Request-Id" in {name.title() for name in response.headers}

        try:
            try_it()
        except Unsatisfiable:
            cannot_be_wrong.add(operation.label)

    assert len(operations) >= 30
    assert cannot_be_wrong == (WITHOUT_INPUT if mode is GenerationMode.NEGATIVE else set())
    # What takes nothing can be asked in a few ways only.
    assert tried.keys() == {one.label for one in operations} - cannot_be_wrong
    assert tried.total() >= (len(operations) - len(WITHOUT_INPUT)) * EXAMPLES
