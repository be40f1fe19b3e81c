"""`python -m workbench`: see cli.py."""

from workbench.cli import main

raise SystemExit(main())
