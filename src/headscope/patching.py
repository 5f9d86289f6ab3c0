"""Activation patching, where notebooks look for it; see `headscope.compat.patching`."""

from headscope.compat.patching import *  # noqa: F403
from headscope.compat.patching import __all__ as __all__
