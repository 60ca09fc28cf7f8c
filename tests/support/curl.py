"""A stand-in for curl where a machine has none, for the few options that the README uses.

``make test`` needs nothing but Python, git and make; people who follow the README have curl.
"""

from __future__ import annotations

import argparse
import sys

import httpx


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-i", action="store_true", help="print the headers too")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-w", dest="write_out")
    given = parser.parse_args()
    method = given.method or ("GET" if given.data is None else "POST")
    headers = dict(header.split(": ", 1) for header in given.headers)
    answer = httpx.request(method, given.url, headers=headers, content=given.data, timeout=30)
    if given.i:
        print(f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}")
        for name, value in answer.headers.items():
            print(f"{name.title()}: {value}")
        print()
    print(answer.text)
    print(f"status {answer.status_code}", file=sys.stderr)


if __name__ == "__main__":
    main()
