"""The command `headscope`: says how threads wait, which is heard only before PyTorch is imported, and hands on.

By default OpenMP's threads spin while they wait for each other. Beside a busy process, on two cores, that made a
forward pass several times slower.
This module stands outside the package because importing anything from that imports PyTorch. `OMP_WAIT_POLICY` in the
environment wins. As a library headscope leaves the setting alone.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    from headscope.cli import main
except KeyboardInterrupt:  # PyTorch takes seconds to import, in which nothing has begun
    print("Stopped.", file=sys.stderr)
    sys.exit(130)

__all__ = ["main"]
