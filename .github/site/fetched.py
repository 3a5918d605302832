"""What a built page fetches by itself is there, and comes from no other host; mkdocs runs this."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# A link is followed by a reader; these the browser fetches.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source|link(?![^>]*rel="(?:canonical|next|prev|alternate)"))'
    r'\b[^>]*?\s(?:src|href)="([^"]+)"'
)


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the pages in a folder."""
    for page in sorted(site.rglob("*.html")):
        for address in FETCHED.findall(page.read_text(encoding="utf-8")):
            parts = urlsplit(address)
            start = site if parts.path.startswith("/") else page.parent
            if parts.netloc:
                yield f"{page.name} fetches {address} from another host"
            elif parts.scheme != "data" and not (start / unquote(parts.path).lstrip("/")).exists():
                yield f"{page.name} shows {address}, which is not there"


def on_post_build(config: Any) -> None:
    """End the build where there is one."""
    if found := list(problems(Path(config.site_dir))):
        raise SystemExit("\n".join(found))
