"""The page of a refusal for browsers, self-contained."""

from __future__ import annotations

__all__ = ["BUTTON_POLICY", "HEADLINES", "PAGE_POLICY", "refusal_page"]

HEADLINES: dict[str, str] = {
    "link-unopened": "You were given a link",
    "bad-request": "This request cannot be used",
    "unauthorized": "You are not signed in",
    "access-unproven": "You have to show who you are",
    "access-denied": "You may not visit this",
    "too-many-guesses": "Too many tries",
    "lease-over": "Your lease is over",
    "device-disabled": "This device is switched off",
    "forbidden": "You may not visit this",
    "unknown-device": "There is no such device",
    "unknown-service": "There is no such service",
    "body-stalled": "The upload has stalled",
    "head-timeout": "The request took too long",
    "head-too-large": "The request is too large",
    "target-broke": "The service broke off",
    "target-down": "The service is down",
    "target-refused": "The service is not running",
    "target-tls-failed": "The service cannot be reached safely",
    "target-unreachable": "The service cannot be reached",
    "tunnel-lost": "The connection to the device was lost",
    "device-busy": "This device is busy",
    "device-moved": "This device is moving to another server",
    "device-draining": "This device is about to restart",
    "device-offline": "This device is offline",
    "proxy-failed": "This gateway has a problem",
    "registry-away": "This gateway has a problem",
    "proxy-draining": "This gateway is about to restart",
    "too-many-visitors": "Too many visitors at once",
    "target-timeout": "The service did not answer",
}
"""The headline by reason; other reasons use the status' reason phrase, and a refusal may have its
own."""

PAGE_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
"""Content-Security-Policy of the page: it stands on the device's own origin and runs nothing."""

BUTTON_POLICY = PAGE_POLICY.replace(b"form-action 'none'", b"form-action 'self'")
"""The same for a page with a button, which leads to where the page came from."""

_STYLE = """\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--page:#f4f5f7;--card:#fff;
--line:#dfe3e8;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#a3adba;--page:#14181d;--card:#1d232a;
--line:#323b45;--link:#8ab4f8}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1rem;background:var(--page);
color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
main{width:100%;max-width:34rem;padding:2rem 1.75rem;background:var(--card);
border:1px solid var(--line);border-radius:.75rem;overflow-wrap:anywhere}
h1{margin:0 0 .75rem;font-size:1.5rem;line-height:1.25}
p{margin:0 0 1rem}
a{color:var(--link)}
button{padding:.6rem 1.2rem;border:0;border-radius:.5rem;background:var(--link);color:var(--card);
font:inherit;cursor:pointer}
footer{margin-top:1.5rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.875rem}
"""


def refusal_page(
    status: int,
    phrase: str,
    reason: str,
    headline: str,
    message: str,
    retry_after: int | None,
    button: str = "",
) -> str:
    """The page for a refusal. `headline` and `message` are text; `retry_after` is in seconds, or
    None where trying again is of no use; `button` asks the same again by POST."""
    import html  # imported here: half a megabyte that only refusals need

    headline = html.escape(headline)
    again = ""
    if retry_after is not None:
        seconds = "a second" if retry_after == 1 else f"{retry_after} seconds"
        again = f'<p><a href="">Try again</a> in {seconds} or later.</p>\n'
    if button:
        again += f'<form method="post"><button>{html.escape(button)}</button></form>\n'
    return f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{headline}</title>
<style>
{_STYLE}</style>
<main>
<h1>{headline}</h1>
<p>{html.escape(message)}</p>
{again}<footer>{status} {html.escape(phrase)} · <code>{html.escape(reason)}</code></footer>
</main>
</html>
"""
