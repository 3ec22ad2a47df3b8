"""What tests of ops draw from."""

import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run."""
    generator = torch.Generator()
    generator.seed()
    return generator
