"""For pytest over mutants: that a test fails is enough, its smallest example is not looked for."""

import pytest
import torch
from hypothesis import Phase, settings


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:  # after conftest.py, before the tests are imported
    torch.set_num_threads(1)
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutation", derandomize=True, phases=phases)
    settings.load_profile("mutation")
