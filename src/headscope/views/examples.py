"""`hello`: the smallest view, to see whether a notebook shows views at all."""

from headscope.views.html import HtmlView

__all__ = ["hello"]


def hello(name: str) -> HtmlView:
    """Greet somebody.

    Example:
        >>> hello("Ada").data
        {'name': 'Ada'}
    """
    return HtmlView("hello", {"name": str(name)})
