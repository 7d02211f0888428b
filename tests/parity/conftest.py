"""PyTorch for models of a few thousand weights."""

import pytest


@pytest.fixture(scope="session")
def torch(torch):
    """One thread: handing such small products to several threads takes longer than computing them."""
    torch.set_num_threads(1)
    return torch
