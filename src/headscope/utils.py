"""Names notebooks look for under `utils`; see `headscope.compat.utils`."""

from headscope.compat.utils import *  # noqa: F403
from headscope.compat.utils import __all__ as __all__
