"""Docstrings name things as Sphinx does, and are Markdown here: a role becomes its name as code."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?([^`]+)`")


class Roles(Extension):
    """Replace the roles in every docstring."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Read one object's docstring once it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
