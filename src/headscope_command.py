"""The command `headscope`: says how threads wait, which is heard only before PyTorch is imported, and hands on.

By default OpenMP's threads spin while they wait for each other. Beside a busy process, on two cores, that made a
forward pass several times slower.
This module stands outside the package because importing anything from that imports PyTorch. `OMP_WAIT_POLICY` in the
environment wins. As a library headscope leaves the setting alone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from headscope.cli import main

__all__ = ["main"]
