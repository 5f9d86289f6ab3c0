"""Rough evaluations, where notebooks look for them; see `headscope.compat.evals`."""

from headscope.compat.evals import *  # noqa: F403
from headscope.compat.evals import __all__ as __all__
