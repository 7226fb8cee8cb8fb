"""What some tests need besides the package: without it they are skipped, or fail where everything has to be there."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest


def do_without(reason: str) -> NoReturn:
    """Skip; fail where the environment variable CI or RARVISION_REQUIRE_ALL is set."""
    for name in ("CI", "RARVISION_REQUIRE_ALL"):
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            pytest.fail(f"{reason}; with {name} set that is a failure", pytrace=False)
    pytest.skip(reason)


def need(*modules: str, group: str) -> None:
    """Of a dependency group."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        do_without(f"needs {', '.join(missing)}: pip install --group {group}")
