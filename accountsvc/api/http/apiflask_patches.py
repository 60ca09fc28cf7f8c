"""The uses of APIFlask and Flask for which they have no public name, in one place.

``tests/api/test_apiflask_patches.py`` has a test for each, which says what breaks without it. So an
upgrade that takes one away is red there first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apiflask import APIFlask
from apiflask.schema_adapters import marshmallow
from apispec import APISpec
from apispec.ext.marshmallow.common import make_schema_key, resolve_schema_instance

# ``@input`` asks this parser how a location is read. The parser's own loader of "json" would take
# the last of two members of the same name, of which another reader may take the first.
parser = marshmallow.parser


def keep_schema_names(app: APIFlask) -> None:
    """Make a schema that apispec has met inside another one keep its name when a view answers it.

    APIFlask remembers only what it registered itself, and would add the schema again under the
    same name, with a warning.
    """
    register = app._register_schema_and_get_ref

    def register_once(spec: APISpec, registered: dict[int, str], schema: Any) -> dict[str, str]:
        converter = app._ma_plugin.converter
        assert converter is not None
        known = converter.refs.get(make_schema_key(resolve_schema_instance(schema)))
        if known is not None:
            return {"$ref": f"#/components/schemas/{known}"}
        return register(spec, registered, schema)

    app._register_schema_and_get_ref = register_once  # type: ignore[method-assign,assignment]


def log_faults_by(app: APIFlask, log_fault: Callable[[Any], None]) -> None:
    """Have *log_fault* log a fault outside a view, by its ``exc_info``, instead of Flask.

    Flask's own line would hold the path, in which a client can put anything, also an e-mail
    address.
    """
    app.log_exception = log_fault  # type: ignore[method-assign,assignment]
