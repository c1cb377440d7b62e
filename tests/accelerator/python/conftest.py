"""Loads the simulated accelerator for the tests here, which need a process of their own.

``tests/python/test_accelerator.py`` runs them in one; so does ``pytest tests/accelerator/python``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "python"))

import accelerator  # noqa: E402

#: Why no test runs here, if so.
REASON = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "violates: uses memory as nobody may, which fails any other test"
    )
    # Other tests ask torch whether there is an accelerator, and expect none.
    arguments = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    if not all(path.is_relative_to(HERE) for path in arguments):
        config.stash[REASON] = "these tests need a process of their own"
    elif reason := accelerator.unavailable():
        config.stash[REASON] = reason
    else:
        accelerator.load()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if reason := config.stash.get(REASON, None):
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _as_new(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives each test devices without work or faults, and looks how it used their memory."""
    with accelerator.configured():
        accelerator.reset_stats()
        yield
        accelerator.drain()
        if request.node.get_closest_marker("violates") is None:
            assert accelerator.stats()["messages"] == []
