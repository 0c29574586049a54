"""What every test relies on: one thread per process, fixed seeds, no GPU test without a GPU."""

import atexit
import os
import random
import shutil
import tempfile
import warnings
import zlib

# The tensors here are small: a thread pool costs more than it gives, much more with several workers. Also read by the
# commands that tests start as processes of their own, and so set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# On a loaded machine a deadline measures the neighbours. CI looks at the same examples every time.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    # What commands keep of where data lie is kept for the tests alone.
    cache = tempfile.mkdtemp(prefix="sde_gen-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache
    # pytest-randomly shuffles the order; the seeds are set below, per test, and so do not change from run to run.
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old only warns
        available = torch.cuda.is_available()
    if not available:
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """Global generators start from the test's own name: the same draws alone, in any order, on any worker."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the point is the global generator
    torch.manual_seed(seed)
