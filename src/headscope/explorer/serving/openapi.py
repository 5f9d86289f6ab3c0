"""`python -m headscope.explorer.serving.openapi`: print the schema of the live page's questions, as OpenAPI.

The page's TypeScript types are generated from it.
"""

import json

from headscope.explorer.serving.app import schema

__all__ = ["as_json"]


def as_json() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(as_json(), end="")
