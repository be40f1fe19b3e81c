"""Shared by the tests of the networks."""

from __future__ import annotations

import torch

# `torch.device("meta")` as a context notes torch's constructors at its first use. That must happen
# before the fixture `poisoned_memory` puts others in their place.
with torch.device("meta"):
    torch.empty(0)
