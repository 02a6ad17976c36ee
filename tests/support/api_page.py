"""docs/api.md, made from the API's own description.

`python -m support.api_page` (in tests/) writes it anew; tests/api/test_page.py holds it to that.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from tunnelmux.api.access import SCOPES
from tunnelmux.api.app import application
from tunnelmux.api.context import Api
from tunnelmux.api.description import description_of
from tunnelmux.api.problem_codes import CODES

PAGE = Path(__file__).parents[2] / "docs" / "api.md"

_INTRODUCTION = """\
# The API

`tunnelmux-api` answers people's browsers and programs on one port. This page lists what programs
call; it is made from the description that the server itself serves at `/api/openapi.json`, by
`python -m support.api_page` in `tests/`.

A program sends an access token: `Authorization: Bearer TOKEN`. A person makes one with `POST
/api/access-tokens`, in a browser that is signed in; the token has at most that person's role in
the tenant, and of that only what its scopes say. Without `role` it is a viewer's, who may only
look: for pairing codes, forwarding and commands ask for `operator`. A browser has one cookie,
`__Host-tunnelmux`, and its changes must come from this server's own pages. Where a program gets
401, a person who opens a page is sent to sign in, and back to it.

A person at a terminal needs none of this: `tunnelmux login URL` gets a token by a code that is
confirmed in a browser ([cli.md](cli.md)). Of tokens for programs, the first is made with the cookie
of a browser that is signed in (its developer tools show it), all else with tokens:

```sh
curl https://tunnels.example.com/api/access-tokens -b "__Host-tunnelmux=$COOKIE" \\
  -H "Origin: https://tunnels.example.com" \\
  --json '{"name": "deploy", "role": "operator", "scopes": ["pairing", "devices:read"]}'
curl https://tunnels.example.com/api/pairings -H "Authorization: Bearer $TOKEN" --json '{}'
curl https://tunnels.example.com/api/devices -H "Authorization: Bearer $TOKEN"
```

Every error is a problem document (RFC 9457) with a `code` that stays the same and a `detail` that
people can act on: 401 who are you, 403 you may not, 404 also for what belongs to another tenant,
409 a rule forbids it, 422 with the JSON Pointer of each field that is not valid, 429 with
`Retry-After`, 503 `registry_away` or `device_offline`. [All codes](#problems) are below. Lists come
in parts of at most 200 items: send `next` as `after` for more. Times are RFC 3339 in UTC, ids are
UUIDs.

## Scopes
"""

_WEBSOCKETS = """\

## WebSockets

`/api/devices/{device_id}/ws/{service}/{path}` is a WebSocket to a service of the device, message by
message. `/api/devices/{device_id}/connect/{service}` is a raw connection: the bytes of binary
messages, of which an empty one is the end of one direction. The handshake is answered when the
service has accepted the connection; a refusal is a problem document instead. A connection
that breaks later ends with the close code 4502 and a reason.

Both need the role operator and the scope `forward`, as forwarding of HTTP does, and an access
token: what a device sends must not act as a page of this server, so browsers may not forward. For
the same reason answers come with `Content-Security-Policy: sandbox` and without `Set-Cookie`.
"""


def api_page() -> str:
    """The text of docs/api.md."""
    # No route is called, so there is nothing it would need an API for.
    document = description_of(application(cast("Api", None)))
    parts = [_INTRODUCTION, "\n| scope | an access token with it may |\n|---|---|\n"]
    parts += [f"| `{name}` | {meaning} |\n" for name, meaning in SCOPES.items()]
    operations = list(_operations(document))
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in operations):
        parts.append(f"\n## {tag.capitalize()}\n\n| call | who may | |\n|---|---|---|\n")
        parts += [
            f"| `{method} {path}` | {_who(operation)} | {_summary(operation)} |\n"
            for method, path, operation in operations
            if operation["tags"][0] == tag
        ]
    parts.append(_WEBSOCKETS)
    parts += _problems()
    return "".join(parts)


def _problems() -> Iterator[str]:
    yield "\n## Problems\n\n| status | `code` | |\n|---|---|---|\n"
    for name, (status, meaning) in sorted(CODES.items(), key=lambda item: (item[1][0], item[0])):
        yield f"| {status} | `{name}` | {meaning} |\n"


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "/http/" not in path or method == "get":
                yield ("ANY" if "/http/" in path else method.upper()), path, operation


def _who(operation: dict[str, Any]) -> str:
    if not operation["security"]:
        return "all"
    role = operation.get("x-role", "signed in")
    return f"{role}, `{operation['x-scope']}`"


def _summary(operation: dict[str, Any]) -> str:
    text = " ".join(operation.get("description", operation["summary"]).split())
    return textwrap.shorten(text, 400, placeholder=" …").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(api_page(), encoding="utf-8")
