"""What speaks for a class: maps per stage and at the input, paths through the blocks, relevance.

`methods.py` lists the methods; `overview.py` makes the first page's four maps in one pass.
"""

from workbench.analyses.attribution.overview import attribution

__all__ = ["attribution"]
