"""The head explorer: what every head of a model does on real text, measured once, and a site of static files to see it.

`explore` measures and writes; `read_tree` reads what was written, by this package or by others that write such files.
`serve` serves it on this machine, with a page that runs a prompt of one's own and switches heads off.
"""

from headscope.explorer.measuring.exploring import explore
from headscope.explorer.serving import serve
from headscope.explorer.tree.reading import Exploration, HeadRecord, read_tree

__all__ = ["Exploration", "HeadRecord", "explore", "read_tree", "serve"]
