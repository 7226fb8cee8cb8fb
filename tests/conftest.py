"""For every test: no network but loopback, fixed seeds, no model hub, no cache; and where data tests find files."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RARVISION_CACHE"] = "off"  # nothing of the person's own; the tests of the cache name a folder

import ipaddress
import random
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in signatures hold in every test: checked at run time here, and nowhere else. (The command line is
# left out: typer reads its signatures.)
_CHECKED = (
    "asking",
    "audit",
    "comparing",
    "chat",
    "detection",
    "encoders",
    "evaluate",
    "index",
    "memory",
    "metrics",
    "naming",
    "pipeline",
    "ranking",
    "regions",
    "reporting",
    "retrieval",
    "taxonomy",
    "tuning",
    "worked",
)
install_import_hook([f"rarvision.{name}" for name in _CHECKED], "shape_checks.checked")

pytest_plugins = ["cli_world"]  # the fixtures of test_cli*.py; imported after the hook

settings.register_profile("rarvision", deadline=None)  # the time of one example says nothing on a busy machine
settings.load_profile("rarvision")

_REQUIRE_DATA = os.environ.get("RARVISION_REQUIRE_DATA") == "1"


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine."""


def _is_loopback(address) -> bool:
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex
    real_getaddrinfo = socket.getaddrinfo

    def check(sock, address):
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address):
            raise NetworkBlockedError(f"tests have no network; tried {address}")

    def connect(self, address):
        check(self, address)
        return real_connect(self, address)

    def connect_ex(self, address):
        check(self, address)
        return real_connect_ex(self, address)

    def getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_loopback((name,)):
            raise socket.gaierror(socket.EAI_NONAME, f"tests have no network; tried {host}")
        return real_getaddrinfo(host, *args, **kwargs)

    socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
    socket.getaddrinfo = getaddrinfo
    yield
    socket.socket.connect, socket.socket.connect_ex = real_connect, real_connect_ex
    socket.getaddrinfo = real_getaddrinfo


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still draw from the global state


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data files that are not ours to ship; the test is skipped where it is not given."""
    given = os.environ.get("RARVISION_DATA")
    if not given:
        pytest.skip("needs data files: set RARVISION_DATA to their folder")
    folder = Path(given)
    if not folder.is_dir():
        pytest.fail(f"RARVISION_DATA={given} is no folder")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and _REQUIRE_DATA and item.get_closest_marker("data") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, though RARVISION_REQUIRE_DATA=1: {report.longrepr}"
    return report
