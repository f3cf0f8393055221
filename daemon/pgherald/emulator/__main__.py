"""Lets `python -m pgherald.emulator` stand for `pgherald fcm-emulator`."""

import sys

from pgherald.emulator.cli import main

sys.exit(main())
