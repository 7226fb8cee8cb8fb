"""What is missing is skipped on a person's machine, and fails where everything has to be there."""

from __future__ import annotations

import pytest

from needs import need


@pytest.fixture(autouse=True)
def _neither(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("RARVISION_REQUIRE_ALL", raising=False)


def test_what_is_there_is_fine():
    need("json", "pytest", group="test")


@pytest.mark.parametrize("value", [None, "", "0", "false"])
def test_a_person_s_machine_skips(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.skip.Exception, match=r"needs no_such_module: pip install --group serve"):
        need("json", "no_such_module", group="serve")


@pytest.mark.parametrize("name", ["CI", "RARVISION_REQUIRE_ALL"])
def test_where_everything_has_to_be_there_it_fails(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(pytest.fail.Exception, match=rf"needs no_such_module.*{name}"):
        need("json", "no_such_module", group="serve")
