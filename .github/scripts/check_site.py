"""Check the built documentation: `python check_site.py FOLDER`.

Every local link and anchor leads somewhere, and nothing that a page shows comes from another host.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What the browser fetches by itself; a link is followed by a reader.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("link", "href"),
}
STATIC_RELS = {"canonical", "next", "prev", "alternate"}


class Page(HTMLParser):
    """The anchors of a page, its links, and what it fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Read one tag."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        static = tag == "link" and found.get("rel", "") in STATIC_RELS
        if not static:
            self.fetched += [found[name] for kind, name in FETCHED if kind == tag and name in found]


def problems(folder: Path) -> Iterator[str]:
    """Everything that is wrong with the pages in a folder."""
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    if not pages:
        yield f"{folder} has no page"
    for path, page in pages.items():
        name = path.relative_to(folder)
        for address in page.fetched:
            if urlsplit(address).netloc:
                yield f"{name} fetches {address} from another host"
            elif not address.startswith("data:") and not target(path, address, folder).exists():
                yield f"{name} shows {address}, which is not there"
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            there = target(path, address, folder)
            if not there.exists():
                yield f"{name} links to {address}, which is not there"
            elif there in pages and unquote(parts.fragment) not in pages[there].anchors | {""}:
                yield f"{name} links to {address}, where no such heading is"


def target(path: Path, address: str, folder: Path) -> Path:
    """The file that an address on a page means."""
    where = unquote(urlsplit(address).path)
    if not where:
        return path
    found = folder / where.lstrip("/") if where.startswith("/") else path.parent / where
    found = found.resolve()
    return found / "index.html" if found.is_dir() else found


def main(folder: str) -> int:
    """Print every problem and return the exit status."""
    found = sorted(set(problems(Path(folder).resolve())))
    print("\n".join(found) or "every link leads somewhere, and nothing comes from another host")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
