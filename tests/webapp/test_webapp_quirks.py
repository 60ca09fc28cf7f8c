"""Habits of the web app that no other client has, and that the service has to put up with."""

from __future__ import annotations

import pytest

from tests.webapp import calls
from tests.webapp.browser import Browser

BODIES = ["{own id}", "{another id}", "null", "1"]


def body_of(shape: str, ann: Browser, bob: Browser) -> str:
    """Return a body of the app: an integer or null, whoever's it is."""
    return {"{own id}": ann.known["id"], "{another id}": bob.known["id"]}.get(shape, shape)


# Bodies that name somebody ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", BODIES)
def test_the_profile_is_that_of_the_token_whatever_the_body_names(
    shape: str, ann: Browser, bob: Browser
) -> None:
    ann.replay(calls.POST_PROFILE, body=body_of(shape, ann, bob))


@pytest.mark.parametrize("shape", BODIES)
def test_the_delete_is_of_the_account_in_the_path_whatever_the_body_names(
    shape: str, ann: Browser, bob: Browser
) -> None:
    ann.replay(calls.DELETE_ACCOUNT, body=body_of(shape, ann, bob))

    ann.replay(calls.GET_PROFILE.answered(calls.SIGNED_OUT))
    bob.replay(calls.GET_PROFILE)


@pytest.mark.parametrize("shape", BODIES)
def test_a_saved_password_belongs_to_the_token_whatever_the_body_names(
    shape: str, ann: Browser, bob: Browser
) -> None:
    body = body_of(shape, ann, bob)

    ann.replay(calls.SAVE_PASSWORD, body=body)
    ann.replay(calls.UPDATE_PASSWORD, body=body)

    ann.replay(calls.LIST_PASSWORDS)
    bob.replay(calls.LIST_PASSWORDS.answered(calls.NO_PASSWORDS))


@pytest.mark.parametrize("shape", BODIES)
def test_the_password_in_the_path_is_deleted_whatever_the_body_names(
    shape: str, ann: Browser, bob: Browser
) -> None:
    ann.replay(calls.SAVE_PASSWORD)
    bob.replay(calls.SAVE_PASSWORD)

    ann.replay(calls.DELETE_PASSWORD, body=body_of(shape, ann, bob))

    ann.replay(calls.LIST_PASSWORDS.answered(calls.NO_PASSWORDS))
    bob.replay(calls.LIST_PASSWORDS)


# Headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", calls.WITH_A_TOKEN.values(), ids=calls.WITH_A_TOKEN)
def test_signed_out_the_app_sends_bearer_null_and_reads_401(call: calls.Call, ann: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD)

    ann.replay(call.answered(calls.SIGNED_OUT), access="null", body="null")

    ann.replay(calls.GET_PROFILE)
    ann.replay(calls.LIST_PASSWORDS)


@pytest.mark.parametrize("call", [calls.GET_PROFILE, calls.LIST_PASSWORDS], ids=["profile", "all"])
def test_a_get_without_a_body_may_have_a_json_content_type(call: calls.Call, ann: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD)
    head, _, body = call.request.partition("\n\n")
    assert "Content-Type: application/json" in head
    assert "Content-Length" not in head
    assert not body

    ann.replay(call)


def test_an_avatar_comes_as_the_one_part_of_a_form_as_a_browser_writes_it(ann: Browser) -> None:
    head, _, body = calls.UPLOAD_AVATAR.request.partition("\n\n")
    boundary = head.partition("boundary=")[2].partition("\n")[0]
    assert body.startswith(f'--{boundary}\nContent-Disposition: form-data; name="avatar";')
    assert body.endswith(f"\n--{boundary}--\n")

    ann.replay(calls.UPLOAD_AVATAR)


# Neither a password nor patience ----------------------------------------------------------------


def test_another_email_is_asked_for_without_a_password_by_whoever_signed_in_with_one(
    ann: Browser,
) -> None:
    ann.known["other_email"] = f"new.{ann.known['email']}"

    ann.replay(calls.ANOTHER_EMAIL)

    ann.replay(calls.GET_PROFILE.answered(calls.WITH_PENDING))
    ann.replay(calls.SIGN_IN.answered(calls.SIGN_IN.answer.replace("{user}", calls.PENDING_USER)))


def test_the_form_that_is_sent_again_with_the_address_of_today_calls_no_change_off(
    ann: Browser,
) -> None:
    ann.known["other_email"] = f"new.{ann.known['email']}"
    ann.replay(calls.ANOTHER_EMAIL)

    ann.replay(calls.PUT_PROFILE.answered(calls.WITH_PENDING), first_name="Ana 2")


def test_ten_edits_and_four_uploads_within_a_minute_are_all_answered(ann: Browser) -> None:
    for number in range(10):
        ann.replay(calls.PUT_PROFILE, first_name=f"Ana {number}")
    ann.known["first_name"] = "Ana 9"

    for _ in range(4):
        ann.replay(calls.UPLOAD_AVATAR)

    ann.replay(calls.GET_PROFILE.answered(calls.WITH_AVATAR))


def test_twenty_sign_ins_and_generated_passwords_within_a_minute_are_all_answered(
    ann: Browser,
) -> None:
    for _ in range(20):
        ann.replay(calls.SIGN_IN)
        ann.replay(calls.GENERATE)


# CORS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/sign-up/"),
        ("POST", "/api/sign-in/"),
        ("POST", "/api/token/refresh/"),
        ("POST", "/api/profile/"),
        ("GET", "/api/profile/"),
        ("PUT", "/api/profile/987654321/update/"),
        ("PATCH", "/api/profile/987654321/update/"),
        ("DELETE", "/api/profile/987654321/delete/"),
        ("POST", "/api/save-passwords/"),
        ("GET", "/api/view-all-saved-passwords/"),
        ("PUT", "/api/view-all-saved-passwords/987654321/update/"),
        ("DELETE", "/api/view-all-saved-passwords/987654321/delete/"),
    ],
)
def test_a_preflight_needs_no_token_and_no_account_behind_its_id(
    method: str, path: str, nobody: Browser
) -> None:
    assert "Authorization:" not in calls.PREFLIGHT.request
    signing = path in {"/api/sign-up/", "/api/sign-in/", "/api/token/refresh/"}
    headers = "content-type" if signing else "authorization,content-type"

    nobody.replay(calls.PREFLIGHT, method=method, path=path, headers=headers)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (("GET /api/profile/ ", "GET /api/nothing/ "), calls.NOTHING_THERE),
        (("GET /api/profile/ ", "GET /api/profile "), calls.NOTHING_THERE),
        (("GET /api/profile/ ", "DELETE /api/profile/ "), calls.NO_SUCH_METHOD),
        (("Bearer {access}", "Bearer"), calls.SIGNED_OUT),
    ],
    ids=["no such address", "no slash, no redirect", "no such method", "no token after Bearer"],
)
def test_an_error_has_the_headers_that_let_the_app_read_it(
    change: tuple[str, str], answer: str, ann: Browser
) -> None:
    assert "{cors}" in answer
    request = calls.GET_PROFILE.request.replace(*change)

    ann.replay(calls.Call(request, answer))
