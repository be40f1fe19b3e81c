"""Networks that several tests of receptive fields look at."""

from __future__ import annotations

import pytest
import torch

import models
from workbench.analyses.scan_network import ScanNetwork


@pytest.fixture(scope="module")
def gated():
    """A network whose gates matter: with the test model's first weights they hardly move."""
    model = models.create_model("efficientvmamba_test", num_classes=10, seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".se." in name:
                parameter.mul_(20)
    return ScanNetwork(model, "Test")
