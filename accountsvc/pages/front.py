"""The front page, for a person or a program: it names the service, and where to look further."""

from __future__ import annotations

from flask import Response, jsonify, render_template, request, url_for

from ..web import services


def show() -> Response:
    """Answer a browser with a page, a program with the same as JSON; ask nothing of the database.

    A program is whatever does not prefer HTML, so also a client that accepts anything.
    """
    # Who opens this page has no token for the counts; whether it is ready is for everybody.
    shown = "statusz" if services().settings.shows_operations_to_all else "readyz"
    places = {
        "docs": url_for("docs.page"),
        "openapi": url_for("openapi.spec"),
        "status": url_for(f"health.{shown}"),
    }
    accepted = request.accept_mimetypes
    if accepted["text/html"] > accepted["application/json"]:
        response = Response(render_template("front.html", places=places))
    else:
        response = jsonify({"service": "accountsvc", **places})
    # Without this header a cache would show a person the JSON that a program has asked for.
    response.vary.add("Accept")
    return response
