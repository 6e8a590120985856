"""Checks a built site: it loads nothing from other hosts, and links between its pages lead to a page and an anchor."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}
LOADED_LINKS = {"stylesheet", "preload", "modulepreload", "preconnect", "dns-prefetch", "icon", "manifest"}


class Page(HTMLParser):
    """The anchors of a page, its links, and what the browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        self.links.update([values["href"]] if tag == "a" and "href" in values else [])
        self.loaded.update(value for name, value in values.items() if (tag, name) in LOADED)
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").split()):
            self.loaded.add(values.get("href", ""))


def faults(site: Path) -> list[str]:
    """What is wrong with the site, one sentence per fault."""
    files = {path.resolve() for path in site.rglob("*") if path.is_file()}
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in files if path.suffix == ".html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name} loads {address}" for address in page.loaded if urlsplit(address).netloc]
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if target not in files:
                found.append(f"{name} refers to {address}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors | {"top"}:
                found.append(f"{name} refers to {address}, an anchor that is not there")
    for path in files:
        if path.suffix in {".css", ".html"}:
            text = path.read_text(encoding="utf-8")
            addresses = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\"']+)", text)
            found += [f"{path.relative_to(site.resolve())} loads {address}" for address in addresses]
    return sorted(found)


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    if wrong:
        sys.exit("\n".join(wrong))
    print("the site loads nothing from other hosts, and its links are valid")
