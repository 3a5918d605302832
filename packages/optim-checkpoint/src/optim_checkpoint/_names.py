# pyright: strict
"""Names made of components: reversible, printable, and the same in both frameworks."""

import difflib
from collections.abc import Iterable, Sequence

from optim_checkpoint._digest import digest
from optim_checkpoint._errors import UnsupportedStateError, shown
from optim_checkpoint._header import MAX_NAME, is_name

_ESCAPED = {"%", ".", "/"}
# Names compared for the nearest ones of a list; a comparison takes some 0.1 ms.
_COMPARED = 20_000


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


def label_of(key: str) -> str:
    r"""Return a name that a tensor may have: the key itself, or one that stands for it.

    >>> label_of("layer.weight"), label_of("a\nb")
    ('layer.weight', 'a%0Ab~dfee833252d71d99')
    """
    try:
        if is_name(key):
            return key
    except UnicodeEncodeError:
        raise UnsupportedStateError(shown(key)[1:-1], "the name is not Unicode") from None
    # In bytes, since a character takes up to four and its escape up to twelve.
    text = ".".join(escape(part) for part in key.split(".")).encode("utf-8")
    return f"{text[: MAX_NAME - 100].decode('utf-8', 'ignore')}~{digest(key.encode())[:16]}"


def name_differences(what: str, lost: Sequence[str], new: Sequence[str], place: str) -> list[str]:
    """List names that are only saved or only live, as many as can be had with the nearest other.

    Args:
        what: What the names are of.
        lost: The names that only the checkpoint has.
        new: The names that it lacks.
        place: What the first should be in.

    Example:
        >>> name_differences("params", ["norm.bias"], ["norm.b"], "the template")[0]
        'params norm.bias is in the checkpoint but not in the template (nearest: norm.b)'
    """
    differences: list[str] = []
    left = _COMPARED
    for names, others, verb in (
        (lost, new, f"is in the checkpoint but not in {place}"),
        (new, lost, "is not in the checkpoint"),
    ):
        for name in names:
            left -= len(others)
            near = difflib.get_close_matches(name, others, 1, 0.6) if left >= 0 else []
            hint = f" (nearest: {near[0]})" if near else ""
            differences.append(f"{what} {name} {verb}{hint}")
    return differences
