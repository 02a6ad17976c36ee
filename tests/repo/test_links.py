"""What a page of the repository cites is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

from support.tree import ROOT, project_files

CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """As forges make them of headings."""
    lines = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def dead_links(page: Path) -> list[str]:
    """Those to files and headings that are not there."""
    return [link for link in _links(page) if not _leads_somewhere(page, link)]


def _links(page: Path) -> list[str]:
    text = CODE.sub("", page.read_text("utf-8"))
    found = sorted(set(re.findall(r"\]\(([^)\s]+)\)", text)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]  # else another site's


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    return not anchor or anchor in anchors(CODE.sub("", target.read_text("utf-8")))


def test_every_link_leads_somewhere() -> None:
    pages = [path for path in project_files() if path.suffix == ".md"]
    assert len(pages) > 10
    dead = {str(page.relative_to(ROOT)): links for page in pages if (links := dead_links(page))}
    assert dead == {}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[here](#a-head) [there](#b) [away](none.md) [far](https://x.y/z)\n")
    assert dead_links(page) == ["#b", "none.md"]
