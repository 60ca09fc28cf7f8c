"""What breaks when APIFlask or Flask changes a part that has no public name and that we need."""

from __future__ import annotations

import json
import warnings

import pytest
from apiflask import APIFlask, Schema
from apiflask.fields import Integer, Nested
from flask import Response

from accountsvc.api.http.apiflask_patches import keep_schema_names
from tests.conftest import NewApp
from tests.support.factories import make_person, services_of


class Inner(Schema):
    number = Integer()


class Outer(Schema):
    inner = Nested(Inner)


def schemas_of(app: APIFlask) -> list[str]:
    """The names of the schemas in the document of an API that answers one alone and in another."""

    @app.get("/outer/")
    @app.output(Outer)
    def outer() -> dict[str, object]:
        return {}

    @app.get("/inner/")
    @app.output(Inner)
    def inner() -> dict[str, object]:
        return {}

    with app.app_context():
        document = app.spec
    assert isinstance(document, dict)
    return sorted(document["components"]["schemas"])


def test_a_schema_inside_another_one_keeps_its_name() -> None:
    app = APIFlask("patched")
    keep_schema_names(app)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = schemas_of(app)

    assert names == ["Inner", "Outer"]


def test_without_the_patch_it_would_get_a_second_one() -> None:
    """When this is red, APIFlask has learned it, and ``keep_schema_names`` can go."""
    with pytest.warns(UserWarning, match="has already been added to the spec"):
        names = schemas_of(APIFlask("plain"))

    assert names == ["Inner", "Inner1", "Outer"]


def test_a_fault_outside_a_view_is_logged_without_the_path(
    new_app: NewApp, capsys: pytest.CaptureFixture[str]
) -> None:
    app = new_app()

    @app.after_request
    def fail(_response: Response) -> Response:
        raise RuntimeError("a hook failed")

    capsys.readouterr()

    response = app.test_client().get("/api/ann@example.org/")

    captured = capsys.readouterr()
    assert response.status_code == 500
    assert "a request failed outside its view" in [
        json.loads(line)["event"] for line in captured.out.splitlines()
    ]
    assert "ann@example.org" not in captured.out + captured.err


def test_a_body_is_read_by_the_loader_that_refuses_a_member_twice(app: APIFlask) -> None:
    person = make_person(services_of(app), "ann")

    response = app.test_client().put(
        f"/api/profile/{person.id}/update/",
        headers=person.auth,
        data=b'{"first_name": "Ann", "first_name": "Zoe"}',
        content_type="application/json",
    )

    assert response.status_code == 400
    assert response.json == {"first_name": ["Send this field once."]}
