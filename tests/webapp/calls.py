"""The web app's requests and the service's answers as they are on the wire.

Lines end in CRLF there. Names in braces are blanks, see ``browser.py``; a name of ``BLOCKS`` stands
for the lines that many requests or many answers have in common.

The app's three calls without a token are axios' own; to the others the app gives ``Accept: */*``
and, whether there is a body or not, a JSON Content-Type. It never calls ``token/refresh/``, which
is recorded as axios would send it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace

PASSWORD = "correct horse battery staple"

# A PNG of 2 by 2 red pixels, as bytes: one that is drawn anew would change with Pillow's release.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP8z8DAwMDAxMDAwMDAAAANHQEDaB7T3gAA"
    "AABJRU5ErkJggg=="
)

BLOCKS = {
    # Firefox sends these lines with each XMLHttpRequest of a page on another origin.
    "browser": """\
Host: localhost:8000
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0
Accept-Language: es-ES,es;q=0.8,en-US;q=0.5,en;q=0.3
Accept-Encoding: gzip, deflate, br, zstd
Origin: http://localhost:3000
Connection: keep-alive
Referer: http://localhost:3000/
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: cors
Sec-Fetch-Site: same-site""",
    # Firefox sends these lines for an <img> element: there is no Origin, so CORS does not apply.
    "image_element": """\
Host: localhost:8000
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0
Accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5
Accept-Language: es-ES,es;q=0.8,en-US;q=0.5,en;q=0.3
Accept-Encoding: gzip, deflate, br, zstd
Connection: keep-alive
Referer: http://localhost:3000/
Sec-Fetch-Dest: image
Sec-Fetch-Mode: no-cors
Sec-Fetch-Site: same-site""",
    # Every answer has these lines.
    "served": """\
Server: accountsvc
Date: {any date}
Connection: keep-alive
X-Request-ID: {any request_id}
X-Content-Type-Options: nosniff
Referrer-Policy: no-referrer
X-Frame-Options: DENY
Content-Security-Policy: default-src 'none'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'""",
    # These lines let the app read an answer; without them it would see "Network Error".
    "cors": """\
Access-Control-Allow-Origin: http://localhost:3000
Access-Control-Expose-Headers: Sunset, Link, ETag, Location, Retry-After, \
Preference-Applied, X-Request-ID""",
    "json": """\
Content-Type: application/json
Content-Length: {any length}
Cache-Control: no-store""",
    "user": (
        '{"id": {id}, "username": "{username}", "email": "{email}", "pending_email": null, '
        '"first_name": "{first_name}", '
        '"last_name": "N\\u00fa\\u00f1ez", "number_phone": "{number_phone}", "avatar": null, '
        '"is_staff": false, "date_joined": "{date_joined}"}'
    ),
}


@dataclass(frozen=True)
class Call:
    """A request as it is sent, and the answer that belongs to it."""

    request: str
    answer: str

    def answered(self, answer: str) -> Call:
        """Return the same request with another answer."""
        return replace(self, answer=answer)


def error(status: str, body: str, header: str = "") -> str:
    """Return the answer of an error, which the app can read like any other."""
    more = f"{header}\n" if header else ""
    return (
        f"HTTP/1.1 {status}\n{{served}}\n{{cors}}\n{{json}}\n{more}Vary: Accept, Origin\n\n{body}"
    )


# Answers of several calls ----------------------------------------------------------------------

NO_TOKEN = error(
    "401 UNAUTHORIZED",
    '{"detail": "Authentication credentials were not provided."}',
    "WWW-Authenticate: Bearer",
)
SIGNED_OUT = error(
    "401 UNAUTHORIZED",
    '{"detail": "Given token not valid for any token type. Sign in again.", '
    '"code": "token_not_valid"}',
    'WWW-Authenticate: Bearer error="invalid_token"',
)
NOT_FOUND = error("404 NOT FOUND", '{"detail": "Not found."}')
NO_SUCH_PASSWORD = error("404 NOT FOUND", '{"error": "Password not found."}')
NOT_AUTHORIZED = error("403 FORBIDDEN", '{"error": "Not authorized"}')
NOTHING_THERE = error("404 NOT FOUND", '{"error": "{any sentence}", "code": "not_found"}')
NO_SUCH_METHOD = error(
    "405 METHOD NOT ALLOWED",
    '{"error": "{any sentence}", "code": "method_not_allowed"}',
    "Allow: {any methods}",
)
THROTTLED = error(
    "429 TOO MANY REQUESTS",
    '{"error": "{any sentence}", "code": "throttled"}',
    "Retry-After: {any seconds}",
)

# A 204 has neither Content-Length nor Content-Type: a proxy might wait for the body they announce.
NO_CONTENT = """\
HTTP/1.1 204 NO CONTENT
{served}
{cors}
Cache-Control: no-store
Vary: Origin

"""

USER_SHOWN = """\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{user}"""

# Without a token -------------------------------------------------------------------------------

GENERATE = Call(
    request="""\
GET /api/response-password/ HTTP/1.1
{browser}
Accept: application/json, text/plain, */*

""",
    answer="""\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"output": "{any output}"}""",
)

SIGN_UP = Call(
    request="""\
POST /api/sign-up/ HTTP/1.1
{browser}
Accept: application/json, text/plain, */*
Content-Type: application/json
Content-Length: {length}

{"username":"{username}","email":"{email}","password":"{password}","first_name":"{first_name}",\
"last_name":"Núñez","number_phone":"{number_phone}"}""",
    answer="""\
HTTP/1.1 201 CREATED
{served}
{cors}
{json}
Vary: Origin

{"access": "{new access}", "refresh": "{new refresh}", "user": {user}}""",
)

TAKEN = error("400 BAD REQUEST", '{"username": ["{any sentence}"], "email": ["{any sentence}"]}')

SIGN_IN = Call(
    request="""\
POST /api/sign-in/ HTTP/1.1
{browser}
Accept: application/json, text/plain, */*
Content-Type: application/json
Content-Length: {length}

{"email":"{email}","password":"{password}"}""",
    answer="""\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"access": "{new access}", "refresh": "{new refresh}", "user": {user}}""",
)

WRONG_CREDENTIALS = error(
    "401 UNAUTHORIZED",
    '{"error": "Invalid email or password"}',
    "WWW-Authenticate: Bearer",
)

REFRESH = Call(
    request="""\
POST /api/token/refresh/ HTTP/1.1
{browser}
Accept: application/json, text/plain, */*
Content-Type: application/json
Content-Length: {length}

{"refresh":"{refresh}"}""",
    answer="""\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"access": "{new access}"}""",
)

# The profile -----------------------------------------------------------------------------------

# The app sends the user's id as the body, or null: to ask for an object would lock everybody out.
POST_PROFILE = Call(
    request="""\
POST /api/profile/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{body}""",
    answer=USER_SHOWN,
)

# The app sets a JSON Content-Type for a GET too, and the browser drops the body: to parse it fails.
GET_PROFILE = Call(
    request="""\
GET /api/profile/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json

""",
    answer=USER_SHOWN,
)

# The form sends all of its fields: an unchanged e-mail address must not count as a change of it.
PUT_PROFILE = Call(
    request="""\
PUT /api/profile/{id}/update/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{"username":"{username}","email":"{email}","first_name":"{first_name}","last_name":"Núñez",\
"number_phone":"{number_phone}"}""",
    answer=USER_SHOWN,
)

PATCH_PROFILE = Call(
    request="""\
PATCH /api/profile/{id}/update/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{"first_name":"{first_name}"}""",
    answer=USER_SHOWN,
)

# Another address waits for its mailbox: the app goes on showing the one that it had.
PENDING_USER = BLOCKS["user"].replace('"pending_email": null', '"pending_email": "{other_email}"')

WITH_PENDING = USER_SHOWN.replace("{user}", PENDING_USER)

ANOTHER_EMAIL = Call(
    request=PUT_PROFILE.request.replace("{email}", "{other_email}"), answer=WITH_PENDING
)

WRONG_PHONE = error("400 BAD REQUEST", '{"number_phone": ["{any sentence}"]}')

# The browser chooses the boundary of a FormData and writes the file's name in UTF-8, with spaces.
UPLOAD_AVATAR = Call(
    request="""\
PUT /api/profile/{id}/update/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: multipart/form-data; boundary=---------------------------9051914041544843365972754266
Content-Length: {length}

-----------------------------9051914041544843365972754266
Content-Disposition: form-data; name="avatar"; filename="mi cumpleaños (1).png"
Content-Type: image/png

{image}
-----------------------------9051914041544843365972754266--
""",
    answer=USER_SHOWN.replace(
        "{user}", BLOCKS["user"].replace('"avatar": null', '"avatar": "{new avatar}"')
    ),
)

WITH_AVATAR = USER_SHOWN.replace(
    "{user}", BLOCKS["user"].replace('"avatar": null', '"avatar": "{avatar}"')
)

NO_IMAGE = error("400 BAD REQUEST", '{"avatar": ["{any sentence}"]}')

SHOW_AVATAR = Call(
    request="""\
GET {avatar} HTTP/1.1
{image_element}

""",
    answer="""\
HTTP/1.1 200 OK
{served}
Content-Type: image/webp
Content-Length: {any length}
Cache-Control: public, max-age=300
Content-Disposition: inline; filename="avatar.webp"
ETag: "{any etag}"
Vary: Origin

{any webp}""",
)

NO_AVATAR = NOTHING_THERE.replace("{cors}\n", "")

# Saved passwords -------------------------------------------------------------------------------

SAVE_PASSWORD = Call(
    request="""\
POST /api/save-passwords/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{"user":{body},"name_pages":"{name_pages}","url":"{url}","password_saved":"{password_saved}"}""",
    answer="""\
HTTP/1.1 201 CREATED
{served}
{cors}
{json}
Vary: Origin

{"message": "password saved successfully", "id": {password_id}}""",
)

NO_PASSWORD = error("400 BAD REQUEST", '{"password_saved": ["{any sentence}"]}')

LIST_PASSWORDS = Call(
    request="""\
GET /api/view-all-saved-passwords/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json

""",
    answer="""\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"message": "passwords retrieved successfully", "passwords": [{"id": {password_id}, \
"name_pages": "{name_pages}", "url": "{url}", "password_saved": "{password_saved}", \
"user": {id}, "created_at": "{any time}", "updated_at": "{any time}"}]}""",
)

NO_PASSWORDS = """\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"message": "passwords retrieved successfully", "passwords": []}"""

# The app sends the edited field alone: the others must stay. ``user`` may be null.
UPDATE_PASSWORD = Call(
    request="""\
PUT /api/view-all-saved-passwords/{password_id}/update/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{"user":{body},"password_saved":"{password_saved}"}""",
    answer="""\
HTTP/1.1 200 OK
{served}
{cors}
{json}
Vary: Origin

{"id": {password_id}, "name_pages": "{name_pages}", "url": "{url}", \
"password_saved": "{password_saved}", "user": {id}, "created_at": "{any time}", \
"updated_at": "{any time}", "message": "password updated successfully"}""",
)

DELETE_PASSWORD = Call(
    request="""\
DELETE /api/view-all-saved-passwords/{password_id}/delete/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{body}""",
    answer=NO_CONTENT,
)

# The account's end -----------------------------------------------------------------------------

DELETE_ACCOUNT = Call(
    request="""\
DELETE /api/profile/{id}/delete/ HTTP/1.1
{browser}
Accept: */*
Authorization: Bearer {access}
Content-Type: application/json
Content-Length: {length}

{body}""",
    answer="""\
HTTP/1.1 204 NO CONTENT
{served}
{cors}
Cache-Control: no-store
Vary: Origin
Sunset: {any date}
Link: </api/profile/{id}/deletion/>; rel="status"

""",
)

CONFIRM = error(
    "401 UNAUTHORIZED",
    '{"detail": "Password confirmation required.", "code": "confirmation_required"}',
    'WWW-Authenticate: Bearer error="insufficient_user_authentication", max_age=86400',
)
WRONG_PASSWORD = error("403 FORBIDDEN", '{"error": "Invalid password", "code": "invalid_password"}')

# Before a call ---------------------------------------------------------------------------------

# A browser asks this before each call with a token or JSON, without the token: 401 stops the call.
PREFLIGHT = Call(
    request="""\
OPTIONS {path} HTTP/1.1
{browser}
Accept: */*
Access-Control-Request-Method: {method}
Access-Control-Request-Headers: {headers}

""",
    answer="""\
HTTP/1.1 204 NO CONTENT
{served}
{cors}
Access-Control-Allow-Methods: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS
Access-Control-Allow-Headers: authorization, content-type, prefer, if-match
Access-Control-Max-Age: 600
Cache-Control: no-store
Vary: Origin

""",
)

WITH_A_TOKEN = {
    "profile, POST": POST_PROFILE,
    "profile, GET": GET_PROFILE,
    "update, PUT": PUT_PROFILE,
    "update, PATCH": PATCH_PROFILE,
    "avatar": UPLOAD_AVATAR,
    "save": SAVE_PASSWORD,
    "view all": LIST_PASSWORDS,
    "update password": UPDATE_PASSWORD,
    "delete password": DELETE_PASSWORD,
    "delete account": DELETE_ACCOUNT,
}
