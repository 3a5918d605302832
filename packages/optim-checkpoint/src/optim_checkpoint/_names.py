# pyright: strict
"""Names made of components: reversible, printable, and the same in both frameworks."""

from collections.abc import Iterable

_ESCAPED = {"%", ".", "/"}


def escape(component: str) -> str:
    """Percent-encode what would be ambiguous or unprintable in a dotted name.

    >>> escape("kernel"), escape("a.b/c")
    ('kernel', 'a%2Eb%2Fc')
    """
    if component == "":
        return "%"
    return "".join(
        "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))
        if character in _ESCAPED or not character.isprintable()
        else character
        for character in component
    )


def join(components: Iterable[str]) -> str:
    """Join components into one name that `components` alone can have produced.

    >>> join(["layers", "0", "w.x"])
    'layers.0.w%2Ex'
    """
    return ".".join(escape(component) for component in components)
