"""What a built page fetches by itself is there, and comes from no other host; mkdocs runs this."""

import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger("mkdocs.hooks.fetched")
# A link is followed by a reader; these the browser fetches.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source|link(?![^>]*rel="(?:canonical|next|prev|alternate)"))'
    r'\b[^>]*?\s(?:src|href)="([^"]+)"'
)


def on_post_build(config: Any) -> None:
    """Warn of each fault, which ends a strict build."""
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        for address in FETCHED.findall(page.read_text(encoding="utf-8")):
            parts = urlsplit(address)
            file = (site if parts.path.startswith("/") else page.parent) / unquote(
                parts.path
            ).lstrip("/")
            if parts.netloc:
                log.warning("%s fetches %s from another host", page.name, address)
            elif parts.scheme != "data" and not file.exists():
                log.warning("%s shows %s, which is not there", page.name, address)
