"""Signing a terminal in, RFC 8628: the terminal asks and polls, a person confirms in a browser.

The page is plain HTML without scripts, and not a page of the console.
"""

from __future__ import annotations

import html
from typing import Annotated, Literal, cast
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from tunnelmux.api.access import SCOPES, AccessRoute, Principal
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import Input
from tunnelmux.config import Secret
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import Role as RoleName
from tunnelmux.registry import TerminalRequest

router = APIRouter(route_class=AccessRoute, tags=["signing in: terminals"])

_INTERVAL = 2
# Seconds between two polls: short, so that the terminal goes on soon after the person's answer.

_NOT_FOR_TERMINALS = frozenset({"tenant", "members", "tokens", "audit"})
# Scopes that no command of `tunnelmux` needs, so that a lost token does not have them either.

_TOO_MANY = frozenset({"too_many_guesses", "too_many_requests"})

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class TerminalAsks(Input):
    """The terminal's description of itself: `ada@laptop`. `earlier` is the token of its last
    sign-in, valid or not: then others at its address cannot use its budget up."""

    client: Annotated[str, Field(min_length=1, max_length=100)]
    earlier: Annotated[str, Field(max_length=256)] | None = None


class TerminalWaits(BaseModel):
    """RFC 8628 section 3.2."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: float
    interval: int = _INTERVAL


class TerminalPolls(Input):
    """The secret that the terminal got with its request."""

    device_code: Annotated[str, Field(min_length=8, max_length=256)]


class TerminalSignedIn(BaseModel):
    """RFC 8628 section 3.5: the terminal has its access token."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  a name, no secret


class TerminalPending(BaseModel):
    """Not decided yet: poll again after `interval`."""

    status: Literal["authorization_pending"] = "authorization_pending"


@router.post("/api/auth/terminal", status_code=201)
async def ask(
    request: Request, api: ApiDependency, _principal: MaybeSignedIn, asking: TerminalAsks
) -> TerminalWaits:
    """Begin on the terminal: it shows a code and waits for the person."""
    address = request.client.host if request.client is not None else ""
    try:
        waiting, code, secret = await api.registry.terminals.ask(
            client=asking.client,
            address=address,
            earlier=Secret(asking.earlier) if asking.earlier else None,
        )
    except RegistryRefused as exc:
        if exc.code not in _TOO_MANY:
            raise
        raise Refused(429, exc.code, f"{exc}.", headers={"retry-after": "2"}) from exc
    page = f"{api.config.api.public_url.rstrip('/')}/terminal"
    return TerminalWaits(
        device_code=secret.reveal(),
        user_code=code.reveal(),
        verification_uri=page,
        verification_uri_complete=f"{page}?{urlencode({'code': code.reveal()})}",
        expires_in=(waiting.expires - waiting.created).total_seconds(),
    )


@router.post(
    "/api/auth/terminal/poll",
    response_model=TerminalSignedIn,
    responses={202: {"model": TerminalPending, "description": "Not decided yet."}},
)
async def poll(api: ApiDependency, _principal: MaybeSignedIn, polling: TerminalPolls) -> Response:
    """The state of the request: 202 while it waits, then the access token, or why there is none."""
    waiting = await api.registry.terminals.poll(Secret(polling.device_code))
    if waiting.state == "open":
        return JSONResponse(TerminalPending().model_dump(), 202)
    # Since the approval, the secret that it polls with is its token.
    signed_in = TerminalSignedIn(access_token=polling.device_code)
    return JSONResponse(signed_in.model_dump())


Code = Annotated[str, Field(max_length=64)]


@router.get("/terminal", include_in_schema=False)
async def page(
    api: ApiDependency, principal: MaybeSignedIn, code: Annotated[Code, Query()] = ""
) -> Response:
    """The page on which a person types or compares the code."""
    if principal is None:
        return _to_sign_in(code)
    refusal = _refusal_of(principal)
    if refusal is not None:
        return _answer(403, refusal)
    if not code:
        return _answer(200, _FORM)
    try:
        waiting = await tenant_for(api, principal).terminals.find(code)
    except RegistryRefused as exc:
        return _answer(429 if exc.code in _TOO_MANY else 409, _said(exc) + _FORM)
    who = await _name_of(api, principal)
    return _answer(200, _question(waiting, code, who, str(principal.role)))


@router.post("/terminal", include_in_schema=False)
async def decide(
    api: ApiDependency,
    principal: MaybeSignedIn,
    code: Annotated[Code, Form()],
    decision: Annotated[Literal["approve", "deny"], Form()],
) -> Response:
    """The person's decision."""
    if principal is None:
        return _to_sign_in(code)
    refusal = _refusal_of(principal)
    if refusal is not None:
        return _answer(403, refusal)
    terminals = tenant_for(api, principal).terminals
    assert principal.role is not None  # _refusal_of has checked it
    try:
        if decision == "deny":
            await terminals.deny(code)
            return _answer(200, "<h1>Denied</h1><p>The terminal gets nothing.</p>")
        token = await terminals.approve(
            code,
            user_id=principal.user_id,
            role=cast("RoleName", str(principal.role)),
            scopes=tuple(scope for scope in SCOPES if scope not in _NOT_FOR_TERMINALS),
            lifetime=api.config.browser_sessions.terminal_lifetime,
        )
    except RegistryRefused as exc:
        return _answer(429 if exc.code in _TOO_MANY else 409, _said(exc) + _FORM)
    name = html.escape(token.name)
    text = f"<h1>Signed in</h1><p>{name} goes on by itself. You can close this page.</p>"
    return _answer(200, text)


def _to_sign_in(code: str) -> Response:
    back = "/terminal" + (f"?{urlencode({'code': code})}" if code else "")
    return RedirectResponse(f"/api/auth/login?return_to={quote(back, safe='')}", 303)


def _refusal_of(principal: Principal) -> str | None:
    if not principal.is_browser:
        return "<h1>Not here</h1><p>This page is for a person in a browser.</p>"
    if principal.role is None:
        return (
            "<h1>No tenant yet</h1><p>You are signed in, and a member of no tenant: ask an owner "
            "for an invitation, then run <code>tunnelmux login</code> again.</p>"
        )
    return None


async def _name_of(api: Api, principal: Principal) -> str:
    user = await api.installation.users.find(principal.user_id)
    return user.email or user.name or user.subject


_FORM = """<h1>Sign a terminal in</h1>
<form method="get" action="/terminal">
<label>The code that the terminal shows<br>
<input name="code" autocomplete="off" autocapitalize="characters" spellcheck="false" autofocus
 required maxlength="20" placeholder="BCDF-GHJK"></label>
<p><button>Look it up</button></p></form>"""


def _said(exc: RegistryRefused) -> str:
    text = str(exc)
    return f'<p role="alert">{html.escape(text[:1].upper() + text[1:])}.</p>'


def _question(waiting: TerminalRequest, code: str, who: str, role: str) -> str:
    shown = html.escape(code.strip().upper())
    return f"""<h1>Sign this terminal in?</h1>
<dl><dt>Code</dt><dd><code>{shown}</code></dd>
<dt>It says it is</dt><dd>{html.escape(waiting.client)}</dd>
<dt>It asked from</dt><dd>{html.escape(waiting.address)}</dd>
<dt>It will act as</dt><dd>{html.escape(who)}, {html.escape(role)}</dd></dl>
<p><strong>Go on only if you have just run <code>tunnelmux login</code> or <code>ssh</code>
yourself and it shows this code.</strong> If another person sent you here, deny: they would get
your rights.</p>
<form method="post" action="/terminal"><input type="hidden" name="code" value="{shown}">
<p><button name="decision" value="approve">Sign it in</button>
<button name="decision" value="deny">Deny</button></p></form>"""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tunnelmux</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 4rem auto;
 padding: 0 1rem; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; }}
dt {{ opacity: .7; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
code, input {{ font: 1.1em ui-monospace, monospace; }}
input {{ padding: .4rem; text-transform: uppercase; }}
button {{ font: inherit; padding: .4rem 1rem; margin-right: .5rem; }}
[role=alert] {{ border-left: .25rem solid #c33; padding-left: .75rem; }}
</style></head><body><main>{content}</main></body></html>
"""


def _answer(status: int, content: str) -> Response:
    return HTMLResponse(_PAGE.format(content=content), status, _HEADERS)
