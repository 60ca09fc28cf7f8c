"""The routes of the applications that tests make: each is compiled once in a process.

Every application has the same routes. werkzeug compiles the functions that build their URLs anew for
each, which is most of the time that one takes to be made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from werkzeug.routing import Rule


def compile_each_once() -> None:
    """Let werkzeug keep what it compiles, by all that it is compiled from."""
    compile_builder: Callable[[Rule, bool], Any] = Rule._compile_builder
    compiled: dict[object, Any] = {}

    def kept(rule: Rule, append_unknown: bool = True) -> Any:
        # A default is resolved by a converter of the rule's own, and so is not the same for all.
        if rule.defaults:
            return compile_builder(rule, append_unknown)
        parts = (rule.rule, tuple(rule._trace), append_unknown)
        if parts not in compiled:
            compiled[parts] = compile_builder(rule, append_unknown)
        return compiled[parts]

    Rule._compile_builder = kept  # type: ignore[method-assign]
