"""The original web app's calls, replayed byte for byte: it must work unmodified.

What this package is for
    The web app is deployed and will not change with this service. Sections 3 and 1 of
    ``docs/contract.md`` promise that it works against the service as it is. Other tests look at
    what a route does; this package looks at nothing but the bytes that the app's browser writes
    to the socket and the bytes that it reads back. It is green in every commit: a test that is
    red here means that somebody's deployed app is broken, and the code is to change, not the test.

What it runs on
    One gunicorn, as ``make run`` prepares and starts it, in an instance of its own on a free port
    of the loopback, with every setting at its default: throttles count, CORS allows
    ``http://localhost:3000``. The hashes alone are cheap. All that the tests know of the service
    goes through that socket; nothing here imports ``accountsvc``.

Where what is
    ``calls.py``       the recorded requests and their answers, to be read like a HAR file
    ``browser.py``     the browser: fills the blanks, writes, reads to the last byte, compares
    ``conftest.py``    the server, and the people who use it
    ``test_webapp_calls.py``    each call of the table in section 3, and DELETE of section 1
    ``test_webapp_quirks.py``   what no other client does, and what the service has to put up with

How an answer is compared
    The status line, every header (its name's case included; their order is free) and the body
    must be the recorded bytes, and nothing may follow them. A header that is missing, changed or
    added is a difference. Words in braces are blanks; ``browser.py`` says what they stand for.
    Where the contract leaves a sentence open (``…``), so does the recording: ``{any sentence}``.

To add a call
    Write its request and answer into ``calls.py`` and one test that replays it. Each person has an
    address of their own (127.x.y.z), because throttles count by address.
"""
