"""Lets `python -m pgherald` stand for `pgherald`."""

import sys

from pgherald.cli import main

sys.exit(main())
