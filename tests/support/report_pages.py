"""What a reader of a report's page sees, without a browser."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page's elements and the text a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.classes: list[str] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.classes += (dict(attrs).get("class") or "").split()
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data

    @property
    def words(self) -> str:
        """The text, with one space where there is any, and true minus signs as hyphens."""
        return " ".join(self.text.split()).replace("\u2212", "-")
