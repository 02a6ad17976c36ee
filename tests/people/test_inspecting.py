"""The inspector by the API, against a real proxy: operators, one tenant, the audit."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from functools import partial
from typing import Any

import httpx2
import pytest

from support.installation import Installation
from support.tenants import Person, person

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def call(
    installation: Installation, method: str, path: str, who: Person | None = None, **more: Any
) -> httpx2.Response:
    token = (who or installation.owner).token
    return installation.here(partial(installation.api.call, method, path, token, **more))


def visit(installation: Installation, path: str) -> None:
    """A visitor that nobody knows, with a secret."""
    request = urllib.request.Request(
        f"http://{installation.visitors}{path}",
        headers={"Host": "web--dev2.localhost", "Cookie": "sid=secret"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opener.open(request, timeout=30)


def test_from_its_begin_to_its_end(installation: Installation) -> None:
    device = installation.ids["dev2"]
    base = f"/api/devices/{device}/inspections"
    begun = call(installation, "POST", base, json={"service": "web", "bodies": True})
    assert begun.status_code == 201, begun.text
    inspection = begun.json()["id"]
    assert (begun.json()["device"], begun.json()["asked_by"] != "") == ("dev2", True)
    visit(installation, "/a?token=hidden")
    visit(installation, "/b")
    assert [one["id"] for one in call(installation, "GET", base).json()] == [inspection]
    found = call(installation, "GET", f"{base}/{inspection}").json()
    assert [(one["target"], one["status"]) for one in found["requests"]] == [
        ("/b", 401),
        ("/a?token=***", 401),
    ]
    assert "secret" not in str(found)
    chosen = call(installation, "GET", f"{base}/{inspection}?path=/a&status=4xx").json()
    [first] = chosen["requests"]
    whole = call(installation, "GET", f"{base}/{inspection}/requests/{first['id']}").json()
    assert whole["curl"].endswith("'http://web--dev2.localhost/a?token=***'")
    again = call(installation, "POST", f"{base}/{inspection}/requests/{first['id']}/replay").json()
    assert (again["replay_of"], again["status"]) == (first["id"], 404)
    assert base64.b64decode(again["answer_body"]) == b"no such page\n"  # the service's own

    vera = installation.here(partial(person, installation.api, "vera", "viewer"))
    for method, path in (
        ("POST", base),
        ("GET", f"{base}/{inspection}"),
        ("POST", f"{base}/{inspection}/requests/{first['id']}/replay"),
        ("DELETE", f"{base}/{inspection}"),
    ):
        wish = {"json": {"service": "web"}} if path == base else {}
        assert call(installation, method, path, vera, **wish).status_code == 403, (method, path)
    eve = installation.here(partial(person, installation.api, "eve", tenant="acme"))
    for method, path in (
        ("GET", f"{base}/{inspection}"),
        ("DELETE", f"{base}/{inspection}"),
        ("POST", f"{base}/{inspection}/requests/{first['id']}/replay"),
    ):
        assert call(installation, method, path, eve).status_code == 404
    other = f"/api/devices/{installation.ids['dev1']}/inspections/{inspection}"
    assert call(installation, "GET", other).status_code == 404

    assert call(installation, "DELETE", f"{base}/{inspection}").status_code == 204
    assert call(installation, "GET", f"{base}/{inspection}").status_code == 404
    entries = call(installation, "GET", "/api/audit?action=inspection.").json()["items"]
    actions = [one["action"] for one in entries if one["object_id"] == device]
    assert actions == ["inspection.end", "inspection.replay", "inspection.begin"]
