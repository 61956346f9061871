"""Arms the crash harness in every Python process that is started with its environment (see tests/crash.py)."""

import os

import crash

crash.arm_from(os.environ)
