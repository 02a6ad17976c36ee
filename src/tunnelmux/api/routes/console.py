"""The console's pages: what the REST API answers, as HTML for a person in a browser.

Each page asks the functions behind the REST API, as the person who looks, so that it shows nothing
which the API would not. Changes are made by the API itself, called from the page.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.responses import HTMLResponse

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn, tenant_for
from tunnelmux.api.identity import session_of
from tunnelmux.api.problems import Refused, registry_refusal
from tunnelmux.api.records import TEXT, After, Device, Pairing
from tunnelmux.api.routes import audit, auth, devices, host_keys, leases, live, overview, pairing
from tunnelmux.api.routes.audit import AuditEntry
from tunnelmux.api.routes.browser_terminals import ACCOUNT
from tunnelmux.api.routes.leases import Lease
from tunnelmux.api.routes.overview import STATES, condition_of_device, count_devices
from tunnelmux.api.timeline import timeline_of
from tunnelmux.console import PAGE_HEADERS, Assets, Pages
from tunnelmux.errors import NoSuchRecord, RegistryError
from tunnelmux.registry import DeviceFilter

__all__ = [
    "PageRoute",
    "assets",
    "frame_of",
    "has_role",
    "names_of",
    "page_of_refusal",
    "router",
    "show",
    "stranger",
    "waiting_for",
]

Viewer = Annotated[Principal, need(Role.VIEWER, "devices:read")]
State = Literal["", "online", "offline", "quarantine", "disabled"]

_ROWS = 100
# Devices on one page of the list: a screen or two of a desk, and 40 kB of HTML.

_WAITING = 50
# Of pairings and of leases, how many are looked through for what waits for a person.

_SIGNS_IN = frozenset({"/api/auth/login", "/api/auth/callback", "/api/access/sign-in"})
# Where a browser goes by itself while a person signs in.

_NAVIGATION = (
    ("o", "/", "Overview", "home", Role.VIEWER),
    ("d", "/devices", "Devices", "device", Role.VIEWER),
    ("i", "/inbox", "Inbox", "inbox", Role.OPERATOR),
    ("n", "/pair", "Pair a device", "plus", Role.OPERATOR),
    ("p", "/people", "People", "people", Role.VIEWER),
    ("t", "/tokens", "Access tokens", "key", Role.VIEWER),
    ("r", "/recordings", "Recordings", "rec", Role.VIEWER),
    ("a", "/audit", "Audit", "audit", Role.ADMIN),
    ("s", "/setup", "Set-up", "check", Role.ADMIN),
)


@functools.cache
def console_assets() -> Assets:
    """Read and packed when the first page is asked for."""
    return Assets("/static")


@functools.cache
def _pages() -> Pages:
    return Pages(console_assets())


class PageRoute(AccessRoute):
    """An AccessRoute for people: a refusal is a page too, with the same status."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as exc:
                refusal = exc
            except RegistryError as exc:
                refusal = registry_refusal(exc)
            except RequestValidationError:
                message = "The address asks for what this page does not have."
                refusal = Refused(422, "invalid_request", message)
            return await _refused(request, refusal)

        return answer


async def page_of_refusal(request: Request, refusal: Refused) -> Response | None:
    """The page for a person whose browser has opened an address that answers with this refusal;
    None for programs, and below /api except where signing in leads."""
    path = request.scope["path"]
    if request.method != "GET" or (path.startswith("/api/") and path not in _SIGNS_IN):
        return None
    if "text/html" not in ",".join(request.headers.getlist("accept")).lower():
        return None
    if path not in _SIGNS_IN and refusal.code == "not_found":
        refusal = Refused(404, "not_found", "This address leads nowhere: follow a link from here.")
    try:
        return await _refused(request, refusal)
    except Refused:
        return _refusal_page(stranger(request), refusal)


router = APIRouter(route_class=PageRoute, include_in_schema=False)
assets = APIRouter(route_class=AccessRoute, include_in_schema=False)


@assets.get("/static/{version}/{name}")
async def asset(request: Request, _principal: MaybeSignedIn, version: str, name: str) -> Response:
    """A file that never changes under this path. It is public: all have the same."""
    known = console_assets()
    if version != known.version or name not in known.files:
        raise Refused(404, "not_found", "There is no such file: load the page again.")
    file = known.files[name]
    headers = {
        **PAGE_HEADERS,
        "cache-control": "public, max-age=31536000, immutable",
        "vary": "accept-encoding",
    }
    packs = {item.partition(";")[0].strip() for item in _accepted(request).split(",")}
    if "gzip" not in packs:
        return Response(file.plain, media_type=file.media_type, headers=headers)
    headers["content-encoding"] = "gzip"
    return Response(file.packed, media_type=file.media_type, headers=headers)


@router.get("/")
async def overview_page(request: Request, api: ApiDependency, principal: Viewer) -> Response:
    """How many devices are how, what they move, and what needs a person."""
    me = await frame_of(request, api, principal)
    running = await leases.list_leases(api, principal, living=True, limit=20)
    return show(
        "overview",
        "/",
        me,
        found=await overview.overview(api, principal),
        may_pair=has_role(principal, Role.OPERATOR),
        leases=running.items,
        names=await names_of(api, principal, running.items),
    )


@router.get("/devices")
async def device_list(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    q: Annotated[str, Query(max_length=128, pattern=TEXT)] = "",
    state: State = "",
    after: After = None,
) -> Response:
    """The devices by name, filtered."""
    me = await frame_of(request, api, principal)
    words = q.split()
    labels = [word for word in words if "=" in word[1:]]
    name = " ".join(word for word in words if word not in labels)
    found = await devices.list_devices(
        api, principal, name, labels, **STATES[state], limit=_ROWS, after=after
    )
    pairs = tuple((key, value) for key, _, value in (item.partition("=") for item in labels))
    asked: list[tuple[str, str]] = [("label", item) for item in labels]
    asked += [(key, str(value).lower()) for key, value in STATES[state].items()]
    if name:
        asked.append(("name", name))
    more = urlencode({"q": q, "state": state, "after": found.next}) if found.next else ""
    return show(
        "devices",
        "/devices",
        me,
        devices=[(device, condition_of_device(device)) for device in found.items],
        counts=await count_devices(api, principal, DeviceFilter(name=name, labels=pairs)),
        q=q,
        state=state,
        query=urlencode(asked),
        more=more,
        may_pair=has_role(principal, Role.OPERATOR),
    )


@router.get("/devices/{device_id}")
async def device_page(
    request: Request, api: ApiDependency, principal: Viewer, device_id: devices.DeviceId
) -> Response:
    """One device: how to reach it, who does, and what has become of it."""
    device = await devices.get_device(api, principal, device_id)
    me = await frame_of(request, api, principal)
    condition = condition_of_device(device)
    visits = await live.list_visits(api, principal, device.id) if condition.mark == "online" else []
    sessions = (await devices.list_device_sessions(api, principal, device.id, limit=10)).items
    held = (await leases.list_leases(api, principal, device=device.id, limit=10)).items
    operates = has_role(principal, Role.OPERATOR)
    assist = device.state.assist if condition.mark == "online" else None
    return show(
        "device",
        "/devices",
        me,
        device=device,
        condition=condition,
        pages=await _page_urls(api, device),
        commands={name: _commands(api, device, name) for name in device.state.services},
        visits=visits,
        sessions=sessions,
        leases=held,
        host_keys=await host_keys.list_host_keys(api, principal, device_id),
        timeline=timeline_of(device, sessions, held, await _changes(api, principal, device)),
        may={
            "operate": operates,
            "asked": assist is not None and assist.until is not None,
            "lend": sorted(assist.services) if assist and assist.mode != "off" else [],
            "terminal": condition.mark == "online" and not api.terminals.problem,
            "approve": {
                lease.id
                for lease in held
                if operates
                and lease.state == "requested"
                # One's own is for another person to approve.
                and principal.user_id != lease.created_by
            },
            "deny": {lease.id for lease in held if operates and lease.state == "requested"},
            "end": {
                lease.id
                for lease in held
                if lease.state not in {"ended", "expired", "used_up"}
                and (operates or principal.user_id in {lease.holder, lease.created_by})
            },
        },
    )


@router.get("/devices/{device_id}/terminal")
async def terminal_page(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    device_id: devices.DeviceId,
    account: Annotated[str, Query(pattern=rf"{ACCOUNT}|^$")] = "",
) -> Response:
    """A shell on a device, by way of the gateway, which judges, records and ends it."""
    device = await devices.get_device(api, principal, device_id)
    me = await frame_of(request, api, principal)
    tenant = tenant_for(api, principal)
    held = await tenant.leases.running(holder=principal.user_id, device_id=device.id)
    return show(
        "terminal",
        "/devices",
        me,
        device=device,
        account=account,
        problem=api.terminals.problem,
        has_screen=console_assets().has_terminal,
        lease=next((lease for lease in held if "shell" in lease.rights), None),
        command=_commands(api, device, "ssh")[0][1],
    )


def show(page: str, here: str, me: dict[str, Any], status: int = 200, **values: Any) -> Response:
    """The answer that is this page; `here` is its entry of the navigation."""
    role = Role.parse(me["role"]) if me["role"] else 0
    navigation = [item for item in _NAVIGATION if role >= item[-1]]
    html = _pages().render(page, here=here, me=me, navigation=navigation, **values)
    return HTMLResponse(html, status, PAGE_HEADERS)


async def frame_of(request: Request, api: Api, principal: Principal) -> dict[str, Any]:
    """Who looks, for the frame around each page. Raises Refused for a program."""
    if not principal.is_browser:
        message = "This is a page for a person in a browser; programs call /api."
        raise Refused(403, "no_browser_session", message)
    session_of(request)
    me = await auth.me(api, principal)
    name = me.name or me.email or "you"
    tenant = next((item.tenant for item in me.tenants if item.tenant_id == me.tenant_id), "")
    return stranger(request) | {
        "name": name,
        "email": me.email,
        "initials": "".join(word[0] for word in name.replace("@", " ").split()[:2]).upper(),
        "role": me.role,
        "tenant": tenant,
        "tenant_id": me.tenant_id,
        "tenants": me.tenants,
        "waiting": len(await waiting_for(api, principal)),
    }


def stranger(request: Request) -> dict[str, Any]:
    """The same for a person who has not signed in."""
    scheme = request.cookies.get("tunnelmux-scheme", "")
    return {
        "name": "",
        "email": "",
        "initials": "",
        "role": None,
        "tenant": "",
        "tenant_id": None,
        "tenants": [],
        "scheme": scheme if scheme in {"light", "dark"} else "",
        "waiting": 0,
    }


async def waiting_for(api: Api, principal: Principal) -> list[Pairing | Lease]:
    """What waits for this person's word: devices to let in, and leases that are others' wishes."""
    if not has_role(principal, Role.OPERATOR) or principal.tenant_id is None:
        return []
    asked = await pairing.list_pairings(api, principal, waiting=True, limit=_WAITING)
    wished = await leases.list_leases(api, principal, living=True, limit=_WAITING)
    requests = [item for item in asked.items if item.kind == "device"]
    return [*requests, *(item for item in wished.items if item.state == "requested")]


async def names_of(
    api: Api, principal: Principal, items: Sequence[Pairing | Lease]
) -> dict[str, str]:
    """The names of the devices of leases, by id."""
    known = tenant_for(api, principal).devices
    names = {}
    for device_id in {item.device_id for item in items if isinstance(item, Lease)}:
        with contextlib.suppress(NoSuchRecord):  # it was removed just now
            names[device_id] = (await known.find(device_id)).name
    return names


async def _refused(request: Request, refusal: Refused) -> Response:
    principal: Principal | None = request.scope["state"].get("principal")
    if principal is None or not principal.is_browser:
        raise refusal
    try:
        me = await frame_of(request, request.app.state.api, principal)
    except RegistryError:
        raise refusal from None  # the registry is away: there is not even a frame to show
    return _refusal_page(me, refusal)


def _refusal_page(me: dict[str, Any], refusal: Refused) -> Response:
    title = {403: "You may not see this", 404: "There is no such thing"}.get(
        refusal.status, "That did not work"
    )
    response = show("refused", "", me, refusal.status, title=title, detail=refusal.detail)
    response.headers.update(refusal.headers or {})
    return response


async def _changes(api: Api, principal: Principal, device: Device) -> list[AuditEntry]:
    """The device's entries of the audit, for those who may read it."""
    if not has_role(principal, Role.ADMIN):
        return []
    return (await audit.list_audit(api, principal, object_id=device.id, limit=20)).items


def _commands(api: Api, device: Device, service: str) -> list[tuple[str, str]]:
    """What a person types to use a service, to be copied as it stands."""
    name = device.name
    if service == "ssh":
        commands = [
            ("A shell", f"tunnelmux ssh {name}"),
            ("At a port of this machine", f"tunnelmux forward {name}:{service} 2222"),
        ]
        gateway = api.config.gateway.public_address
        if gateway is not None:
            port = "" if gateway.port == 22 else f"-p {gateway.port} "
            plain = f"ssh {port}root@{device.label}@{gateway.host}"
            commands.insert(0, ("A shell by the ssh that you have, recorded", plain))
        return commands
    base = api.config.api.public_url.rstrip("/")
    url = f"{base}/api/devices/{device.id}/http/{service}/"
    return [
        ("At a port of this machine", f"tunnelmux forward {name}:{service} 8080"),
        ("If it speaks HTTP, by curl", f"tunnelmux curl {name}/{service}/"),
        (
            "The same with an access token, without tunnelmux",
            f'curl -H "Authorization: Bearer $TOKEN" {url}',
        ),
    ]


async def _page_urls(api: Api, device: Device) -> dict[str, str]:
    """Where a browser finds each service that may be a web page; none while no proxy says where
    visitors come in."""
    base = await api.visitors.visitors_url()
    if base is None:
        return {}
    scheme, _, host = base.partition("://")
    return {
        name: f"{scheme}://{name}--{device.label}.{host}/"
        for name in device.state.services
        if name != "ssh"
    }


def has_role(principal: Principal, least: Role) -> bool:
    """Whether this person may what needs the role."""
    return principal.role is not None and principal.role >= least


def _accepted(request: Request) -> str:
    return ",".join(request.headers.getlist("accept-encoding"))
