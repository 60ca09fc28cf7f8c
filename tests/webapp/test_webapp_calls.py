"""Each call of the web app, as section 3 of the contract has it, and section 1's DELETE.

That a call is answered with the recorded bytes is what ``replay`` compares; no test repeats it.
"""

from __future__ import annotations

import pytest

from tests.webapp import calls
from tests.webapp.browser import Browser

NEVER_WAS = "987654321"

# Without a token -------------------------------------------------------------------------------


def test_a_password_is_generated_for_anybody(nobody: Browser) -> None:
    nobody.replay(calls.GENERATE)


def test_signing_up_answers_tokens_and_the_user(nobody: Browser) -> None:
    nobody.replay(calls.SIGN_UP)

    nobody.replay(calls.GET_PROFILE)


def test_signing_up_with_what_is_taken_names_the_fields(ann: Browser) -> None:
    ann.replay(calls.SIGN_UP.answered(calls.TAKEN))


def test_signing_in_answers_tokens_and_the_user(ann: Browser) -> None:
    before = ann.known["access"]

    ann.replay(calls.SIGN_IN)

    assert ann.known["access"] != before
    ann.replay(calls.GET_PROFILE)


def test_an_unknown_email_and_a_wrong_password_are_answered_alike(ann: Browser) -> None:
    refused = calls.SIGN_IN.answered(calls.WRONG_CREDENTIALS)

    ann.replay(refused, password="not the right one")
    ann.replay(refused, email="who@example.org")


def test_the_eleventh_wrong_password_is_429_with_the_seconds_to_wait(ann: Browser) -> None:
    for _ in range(10):
        ann.replay(calls.SIGN_IN.answered(calls.WRONG_CREDENTIALS), password="wrong")

    ann.replay(calls.SIGN_IN.answered(calls.THROTTLED))


def test_a_refresh_token_gets_an_access_token(ann: Browser) -> None:
    ann.replay(calls.REFRESH)

    ann.replay(calls.GET_PROFILE)


def test_an_access_token_refreshes_nothing(ann: Browser) -> None:
    ann.replay(calls.REFRESH.answered(calls.SIGNED_OUT), refresh=ann.known["access"])


# The profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [calls.POST_PROFILE, calls.GET_PROFILE], ids=["POST", "GET"])
def test_the_profile_is_shown_to_its_owner(call: calls.Call, ann: Browser) -> None:
    ann.replay(call)


@pytest.mark.parametrize("call", [calls.PUT_PROFILE, calls.PATCH_PROFILE], ids=["PUT", "PATCH"])
def test_an_edited_profile_is_answered_and_kept(
    call: calls.Call, ann: Browser, bob: Browser
) -> None:
    ann.known["first_name"] = "Eva"

    ann.replay(call)

    ann.replay(calls.GET_PROFILE)
    bob.replay(calls.GET_PROFILE)


def test_a_wrong_field_of_a_profile_is_named_and_nothing_is_changed(ann: Browser) -> None:
    ann.replay(
        calls.PUT_PROFILE.answered(calls.WRONG_PHONE), first_name="E", number_phone="call me"
    )

    ann.replay(calls.GET_PROFILE)


def test_another_profile_is_not_to_be_edited(ann: Browser, bob: Browser) -> None:
    edit = calls.PATCH_PROFILE

    ann.replay(edit.answered(calls.NOT_AUTHORIZED), id=bob.known["id"], first_name="Eva")
    ann.replay(edit.answered(calls.NOT_FOUND), id=NEVER_WAS)

    bob.replay(calls.GET_PROFILE)


def test_an_avatar_is_uploaded_and_shown_to_anybody(ann: Browser, nobody: Browser) -> None:
    ann.replay(calls.UPLOAD_AVATAR)

    ann.replay(calls.GET_PROFILE.answered(calls.WITH_AVATAR))
    nobody.replay(calls.SHOW_AVATAR, avatar=ann.known["avatar"])


def test_what_is_no_image_is_refused_as_the_field_avatar(ann: Browser) -> None:
    ann.replay(calls.UPLOAD_AVATAR.answered(calls.NO_IMAGE), image="%PDF-1.7")

    ann.replay(calls.GET_PROFILE)


# Saved passwords -------------------------------------------------------------------------------


def test_a_password_is_saved_and_shown(ann: Browser, bob: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD)

    ann.replay(calls.LIST_PASSWORDS)
    bob.replay(calls.LIST_PASSWORDS.answered(calls.NO_PASSWORDS))


def test_name_and_url_may_be_empty_and_are_shown_as_texts(ann: Browser) -> None:
    ann.known |= {"name_pages": "", "url": ""}

    ann.replay(calls.SAVE_PASSWORD)

    ann.replay(calls.LIST_PASSWORDS)


def test_no_password_to_be_saved_is_named(ann: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD.answered(calls.NO_PASSWORD), password_saved="")

    ann.replay(calls.LIST_PASSWORDS.answered(calls.NO_PASSWORDS))


def test_one_field_of_a_saved_password_is_changed(ann: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD)
    ann.known["password_saved"] = "an0ther one"

    ann.replay(calls.UPDATE_PASSWORD)

    ann.replay(calls.LIST_PASSWORDS)


def test_a_saved_password_is_deleted(ann: Browser) -> None:
    ann.replay(calls.SAVE_PASSWORD)

    ann.replay(calls.DELETE_PASSWORD)

    ann.replay(calls.LIST_PASSWORDS.answered(calls.NO_PASSWORDS))
    ann.replay(calls.DELETE_PASSWORD.answered(calls.NO_SUCH_PASSWORD))


@pytest.mark.parametrize(
    "call", [calls.UPDATE_PASSWORD, calls.DELETE_PASSWORD], ids=["PUT", "DELETE"]
)
def test_another_persons_password_is_not_found(
    call: calls.Call, ann: Browser, bob: Browser
) -> None:
    bob.replay(calls.SAVE_PASSWORD)

    ann.replay(
        call.answered(calls.NO_SUCH_PASSWORD),
        password_id=bob.known["password_id"],
        password_saved="stolen",
    )

    bob.replay(calls.LIST_PASSWORDS)


# The account's end -----------------------------------------------------------------------------


def test_the_delete_is_204_and_the_session_and_the_avatar_end_with_it(
    ann: Browser, bob: Browser
) -> None:
    ann.replay(calls.UPLOAD_AVATAR)
    ann.replay(calls.SHOW_AVATAR)

    ann.replay(calls.DELETE_ACCOUNT)

    ann.replay(calls.GET_PROFILE.answered(calls.SIGNED_OUT))
    ann.replay(calls.DELETE_ACCOUNT.answered(calls.SIGNED_OUT))
    ann.replay(calls.REFRESH.answered(calls.SIGNED_OUT))
    ann.replay(calls.SHOW_AVATAR.answered(calls.NO_AVATAR))
    bob.replay(calls.GET_PROFILE)
    # Another person is told 404: a 403 would tell them that the account still is there.
    bob.replay(calls.DELETE_ACCOUNT.answered(calls.NOT_FOUND), id=ann.known["id"])


def test_the_delete_without_a_token_is_401(ann: Browser) -> None:
    bare = calls.Call(
        request=calls.DELETE_ACCOUNT.request.replace("Authorization: Bearer {access}\n", ""),
        answer=calls.NO_TOKEN,
    )

    ann.replay(bare)

    ann.replay(calls.GET_PROFILE)


def test_the_delete_of_another_account_is_403_and_of_none_404(ann: Browser, bob: Browser) -> None:
    ann.replay(calls.DELETE_ACCOUNT.answered(calls.NOT_AUTHORIZED), id=bob.known["id"])
    ann.replay(calls.DELETE_ACCOUNT.answered(calls.NOT_FOUND), id=NEVER_WAS)

    ann.replay(calls.GET_PROFILE)
    bob.replay(calls.GET_PROFILE)


def test_the_delete_with_a_refreshed_token_needs_the_password(ann: Browser) -> None:
    ann.replay(calls.REFRESH)

    ann.replay(calls.DELETE_ACCOUNT.answered(calls.CONFIRM))
    ann.replay(calls.DELETE_ACCOUNT.answered(calls.WRONG_PASSWORD), body='{"password":"wrong"}')
    ann.replay(calls.GET_PROFILE)
    ann.replay(calls.DELETE_ACCOUNT, body=f'{{"password":"{calls.PASSWORD}"}}')
