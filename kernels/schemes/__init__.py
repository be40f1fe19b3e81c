"""Every scan scheme as an entry of `SCHEMES`: a definition, a source, a table builder."""

from collections.abc import Mapping
from types import MappingProxyType

from kernels.schemes import curves, lines, other_networks
from kernels.schemes.base import PAD, Extra, OtherNetwork, Parameter, Scheme, Table

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {**lines.SCHEMES, **curves.SCHEMES, **other_networks.SCHEMES}
)

__all__ = ["PAD", "SCHEMES", "Extra", "OtherNetwork", "Parameter", "Scheme", "Table"]
