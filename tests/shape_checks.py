"""The type checker that the tests put on the library's functions: shapes and dtypes of arrays, at run time."""

import re

from beartype import beartype

_ARRAY = re.compile(r"\b(Bool|Float|Float32|Float64|Int|Int64|Integer|Num|Shaped|UInt8|UInt64)\[")


def checked(function):
    """Beartype on array annotations alone: tests give wrong types of other things on purpose."""
    hints = getattr(function, "__annotations__", {})
    arrays = {name: hint for name, hint in hints.items() if _ARRAY.search(str(hint)) and "Sequence" not in str(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)
