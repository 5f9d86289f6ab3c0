"""The committed schema, from which the page's types are made, is the server's."""

from pathlib import Path

import headscope
from headscope.explorer.serving.openapi import as_json


def test_the_schema_in_the_tree_is_true() -> None:
    committed = Path(headscope.__file__).parent / "explorer" / "web" / "openapi.json"
    assert committed.read_text(encoding="utf-8") == as_json()
