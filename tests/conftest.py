"""Fixtures of all tests, and how hypothesis draws: the same examples on every run, no deadline on a shared machine."""

from collections.abc import Iterator
from pathlib import Path

import models
import pytest
import torch
from hypothesis import HealthCheck, settings

from secateur import onnx_export

pytest_plugins = ["services"]  # real servers, started by the first test that asks for one

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes one runs a file's tests, so that what they share is made once; one runs all that use the servers."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            fixtures = getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("servers" if "servers" in fixtures else item.path.stem))


@pytest.fixture(autouse=True)
def _torch_random_state() -> Iterator[None]:
    """What a test draws from torch depends on that test alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def residual_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The residual network as ONNX: exporting it takes seconds, so it is done once."""
    path = tmp_path_factory.mktemp("onnx") / "residual.onnx"
    onnx_export.export(models.exported("residual"), path)
    return path
