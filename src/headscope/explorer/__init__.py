"""The head explorer: what every head of a model does on real text, measured once, and a site of static files to see it.

`read_tree` reads what was measured, by this package or by others that write the same files. `serve` serves it on this
machine, with a page that runs a prompt of one's own and switches heads off.
"""

from headscope.explorer.serving import serve
from headscope.explorer.tree.reading import Exploration, HeadRecord, read_tree

__all__ = ["Exploration", "HeadRecord", "read_tree", "serve"]
