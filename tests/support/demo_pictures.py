"""The demo's pictures in docs/images, made from the running demo.

`python -m support.demo_pictures` (in tests/, with a Chromium) writes them anew.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

import trio
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI

from support.browser import browser_page
from tunnelmux.api.quickstart import OWNER
from tunnelmux.cli.demo.console_cast import ACCOUNT
from tunnelmux.cli.demo.console_stage import ConsolePorts, running_console
from tunnelmux.cli.demo.console_visitor import visiting
from tunnelmux.cli.demo.report import TextReport
from tunnelmux.cli.demo.run import tunnel_demo
from tunnelmux.cli.demo.stage import running_stage
from tunnelmux.observability import configure_logs

_PULSES_IN_SIGHT = """
[...document.querySelectorAll("#pulses circle")]
    .filter(dot => { const x = dot.getBoundingClientRect().x; return 480 < x && x < 640; })
    .length > 0
"""

__all__ = ["draw_console", "draw_page", "draw_terminal"]

_IMAGES = Path(__file__).parents[2] / "docs" / "images"
_WITHOUT_WEB_FONTS = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""A picture in this project needs nothing from elsewhere: the viewer's monospace font will do."""

_WATCHED = 60
"""Round trips the page has made when it is drawn, so that its curve is a curve."""


async def draw_page(
    file: Path, *, width: int = 1120, height: int = 860, scheme: str = "light"
) -> None:
    """A picture of the live page, as a browser shows it through the tunnel."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with (
            running_stage(lambda _sentence: None) as stage,
            browser_page(
                chromium, Path(profile), width=width, height=height, scheme=scheme
            ) as page,
        ):
            await page.goto(stage.url)
            with trio.fail_after(60):
                await page.wait_until("typeof times === 'object'")
                await page.wait_until(f"times.length > {_WATCHED}")
                await page.wait_until(_PULSES_IN_SIGHT)
            await trio.Path(file).write_bytes(await page.screenshot())


async def draw_console(files: dict[str, Path], *, width: int = 1120, height: int = 860) -> None:
    """Pictures of a device's page in the console, for each scheme of colours its file."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        async with (
            running_console(
                lambda _sentence: None, Path(folder), preferred=ConsolePorts()
            ) as stage,
            visiting(stage.url) as visitor,
            browser_page(chromium, Path(profile), width=width, height=height) as page,
        ):
            await visitor.sign_in(OWNER)
            await visitor.get(stage.page_url("camera"))
            [camera] = (await visitor.api("GET", "/api/devices?name=camera"))["items"]
            await visitor.type_in_terminal(camera["id"], ACCOUNT, "uptime")
            await page.call("Network.enable")
            await page.call("Emulation.setScrollbarsHidden", hidden=True)
            for host, jar in visitor.cookies.items():
                await page.set_cookies(f"http://{host}", jar)
            await page.goto(f"{stage.url}devices/{camera['id']}")
            with trio.fail_after(60):
                await page.wait_until("document.querySelector('[data-live=on]')")
                await page.wait_until("document.querySelector('#visits .items')")
            for scheme, file in files.items():
                wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
                features = [{"name": name, "value": value} for name, value in wishes.items()]
                await page.call("Emulation.setEmulatedMedia", features=features)
                picture = await page.call("Page.captureScreenshot")
                await trio.Path(file).write_bytes(base64.b64decode(picture["data"]))


async def draw_terminal(file: Path) -> None:
    """A picture of what `tunnelmux demo` prints, up to the moment when it waits for Ctrl-C."""
    console = Console(
        file=io.StringIO(), record=True, width=84, highlight=False, force_terminal=True
    )
    console.print("[bold]$ tunnelmux demo[/]")
    demo = tunnel_demo(_WithoutSpinner(console), once=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(demo.run)
        while demo.results is None:  # noqa: ASYNC110  it tells a person, and nobody else
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    console.save_svg(
        str(file), title="tunnelmux demo", theme=MONOKAI, code_format=_WITHOUT_WEB_FONTS
    )


class _WithoutSpinner(TextReport):
    """A picture holds still."""

    def checking(self, check: object) -> None:
        pass


if __name__ == "__main__":
    configure_logs("error")
    _IMAGES.mkdir(parents=True, exist_ok=True)
    trio.run(partial(draw_page, _IMAGES / "demo-page.png"))
    schemes = {scheme: _IMAGES / f"console-{scheme}.png" for scheme in ("light", "dark")}
    trio.run(draw_console, schemes)
    trio.run(draw_terminal, _IMAGES / "demo-terminal.svg")
