"""Scores of heads against attention patterns, where notebooks look for them; see `headscope.compat.head_detector`."""

from headscope.compat.head_detector import *  # noqa: F403
from headscope.compat.head_detector import __all__ as __all__
