"""What no route takes, made from the API's description: one problem document, nothing changed."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.apis import LiveApi, live_api
from support.postgresql import PostgreSQL, run_postgresql
from support.registries import Templates
from support.tenants import Person, everything, objects_of, person
from tunnelmux.api.records import TEXT
from tunnelmux.config.api import ApiLimits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Schema = dict[str, Any]

SAMPLES: dict[str, Any] = {
    "object": {"a": [1]},
    "array": [[]],
    "string": "neither number nor list",
    "number": 12.5,
    "null": None,
}
"""A value of each type. Booleans are left out: they are numbers to some, and text is no boolean."""

MOST_BODY = 1_048_576
"""Longer text is refused with its body."""

VALUES = {
    "email": "ada@example.com",
    "owner_email": "ada@example.com",
    "role": "viewer",
    "code": "ABCD-EFGH",
    "name": "fine",
}


@dataclass
class Operation:
    """One route with a body."""

    method: str
    path: str
    schema: Schema

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Described:
    """An API, its description, and an owner with one object of each kind."""

    def __init__(
        self, api: LiveApi, owner: Person, document: Schema, objects: dict[str, str]
    ) -> None:
        self.api = api
        self.owner = owner
        self.document = document
        self.objects = objects

    def resolve(self, schema: Schema) -> Schema:
        """The schema itself, where it is a reference."""
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def operations(self) -> list[Operation]:
        """All with a JSON body."""
        found = []
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                content = operation.get("requestBody", {}).get("content", {})
                if "application/json" in content:
                    schema = self.resolve(content["application/json"]["schema"])
                    found.append(Operation(method.upper(), self.place(path), schema))
        assert len(found) > 12
        return found

    def place(self, path: str) -> str:
        """A path of the description, with the owner's own objects in it."""
        return re.sub(r"\{(\w+)\}", lambda name: self.objects.get(name[1], "x"), path)

    def alternatives(self, schema: Schema) -> list[Schema]:
        """What a value may be."""
        schema = self.resolve(schema)
        return [self.resolve(item) for item in schema.get("anyOf", [schema])]

    def types(self, schema: Schema) -> set[str]:
        """The JSON types that a value may have; an integer is a number."""
        found = {item.get("type", "string") for item in self.alternatives(schema)}
        return {"number" if name == "integer" else name for name in found}

    def value(self, name: str, schema: Schema) -> Any:
        """Something that the schema allows."""
        first = self.alternatives(schema)[0]
        if "enum" in first or "const" in first:
            return first.get("const", first.get("enum", [None])[0])
        match first.get("type"):
            case "object":
                return self.body(first)
            case "array":
                return [self.value(name, first["items"])] * max(1, first.get("minItems", 0))
            case "integer" | "number":
                return first.get("minimum", first.get("exclusiveMinimum", 0) + 1)
            case "boolean":
                return False
            case _ if "[0-9a-f]" in first.get("pattern", ""):
                return "00000000-0000-7000-8000-000000000000"
            case _ if first.get("format") == "date-time":
                return "2026-11-27T20:15:00Z"
            case _:
                text = VALUES.get(name, "x")
                return text.ljust(first.get("minLength", 0), "x")

    def greatest(self, schema: Schema, otherwise: Any) -> Any:
        """The longest text or the greatest number that the schema allows, if it has a bound."""
        for item in self.alternatives(schema):
            if "enum" in item or "const" in item or item.get("pattern", TEXT) != TEXT:
                continue
            if item.get("maxLength", MOST_BODY) < 100_000:
                return "\U00010348" * item["maxLength"]
            if "maximum" in item:
                return item["maximum"]
        return otherwise

    def body(self, schema: Schema) -> dict[str, Any]:
        """A body with all its fields."""
        return {
            name: self.value(name, inner) for name, inner in schema.get("properties", {}).items()
        }

    async def send(self, operation: Operation, body: object) -> httpx2.Response:
        """What a program with all rights gets. Any text of JSON can be sent, also what is none
        of Unicode."""
        return await self.send_raw(operation, json.dumps(body).encode(), "application/json")

    async def send_raw(
        self, operation: Operation, body: bytes, content_type: str | None
    ) -> httpx2.Response:
        """The same with the bytes themselves."""
        headers = {"authorization": f"Bearer {self.owner.token}"}
        if content_type is not None:
            headers["content-type"] = content_type
        return await self.api.client.request(
            operation.method, self.api.base + operation.path, headers=headers, content=body
        )


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Templates, PostgreSQL]]:
    """PostgreSQL, which is stricter about text than SQLite, and a database there."""
    with run_postgresql() as server:
        yield Templates(tmp_path_factory.mktemp("templates")), server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty registry; None for the file that an API makes by itself."""
    if request.param == "sqlite":
        return None
    templates, server = request.getfixturevalue("databases")
    url: str = templates.postgresql(server)
    return url


@asynccontextmanager
async def described(folder: Path, database_url: str | None = None) -> AsyncIterator[Described]:
    """Such an API, of whose tenant nothing may have changed at the end of the block.

    What fails in the block is raised when the API has ended: within, its tasks would wrap it.
    """
    problem: AssertionError | None = None
    limits = ApiLimits(max_changes_per_minute=100_000)
    async with live_api(folder, registry_url=database_url, limits=limits) as api:
        owner = await person(api, "owner")
        document = (await api.call("GET", "/api/openapi.json")).json()
        objects = await objects_of(api, owner)
        before = await everything(api, owner)
        try:
            yield Described(api, owner, document, objects)
            assert await everything(api, owner) == before
        except AssertionError as exc:
            problem = exc
    if problem is not None:
        raise problem


def problem_of(answer: httpx2.Response, what: object) -> Schema:
    """The problem document, which is one."""
    assert answer.headers.get("content-type") == "application/problem+json", (what, answer)
    document: Schema = answer.json()
    assert document["status"] == answer.status_code, what
    assert re.fullmatch(r"[a-z_]+", document["code"]), what
    assert document["type"] == f"urn:tunnelmux:problem:{document['code']}", what
    assert document["detail"], what
    return document


def names_field(answer: httpx2.Response, name: str, what: object) -> None:
    """The one thing that is wrong is this field."""
    document = problem_of(answer, what)
    assert (document["status"], document["code"]) == (422, "invalid_request"), (what, document)
    pointers = [error["pointer"] for error in document["errors"]]
    assert pointers, what
    assert all(pointer.split("/")[1] == name for pointer in pointers), (what, document)


def wrong_values(of: Described, schema: Schema) -> Iterator[Any]:
    """Values of another type than a field has, and longer ones."""
    for name in SAMPLES.keys() - of.types(schema):
        yield SAMPLES[name]
    alternatives = of.alternatives(schema)
    for item in alternatives:
        if item.get("maxLength", MOST_BODY) < MOST_BODY:
            yield "x" * (item["maxLength"] + 1)
        if "maxItems" in item:
            yield [of.value("", item["items"])] * (item["maxItems"] + 1)
        if "enum" in item or "const" in item:
            yield "none of those"


async def test_a_missing_field_is_named(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            for name in operation.schema.get("required", []):
                body = of.body(operation.schema)
                del body[name]
                names_field(await of.send(operation, body), name, (operation, name))


async def test_a_field_of_another_type_or_too_long_is_named(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            for name, schema in operation.schema["properties"].items():
                for value in wrong_values(of, schema):
                    body = of.body(operation.schema) | {name: value}
                    what = (operation, name, str(value)[:40])
                    names_field(await of.send(operation, body), name, what)


async def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            body = of.body(operation.schema) | {"tenant": "another"}
            names_field(await of.send(operation, body), "tenant", operation)


async def test_every_text_has_a_greatest_length(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        unbounded = [
            f"{operation}: {name}"
            for operation in of.operations()
            for name, schema in operation.schema["properties"].items()
            for item in of.alternatives(schema)
            if "[0-9a-f]" not in item.get("pattern", "")  # an id
            and (
                (item.get("type") == "string" and not item.keys() & {"maxLength", "enum", "const"})
                or (item.get("type") == "array" and "maxItems" not in item)
            )
        ]
        assert unbounded == []


async def test_the_longest_text_fits_into_the_database(
    tmp_path: Path, database_url: str | None
) -> None:
    """Of letters that take four bytes each, and of the greatest numbers: no failure of ours."""
    async with live_api(tmp_path, registry_url=database_url) as api:
        owner = await person(api, "owner")
        document = (await api.call("GET", "/api/openapi.json")).json()
        of = Described(api, owner, document, await objects_of(api, owner))
        stored = 0
        for operation in of.operations():
            for name, schema in operation.schema["properties"].items():
                body = of.body(operation.schema)
                if "name" in body:
                    body["name"] = f"fine-{stored}"
                body[name] = of.greatest(schema, body[name])
                answer = await of.send(operation, body)
                stored += answer.status_code == 201
                if answer.is_error:  # names, codes and addresses are of few letters
                    what = (operation, name)
                    problem = problem_of(answer, what)
                    # There is no proxy here to inspect anything.
                    assert problem["status"] < 500 or problem["code"] == "proxy_away", what
        assert stored > 10


async def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            for name, schema in operation.schema["properties"].items():
                if "string" not in of.types(schema):
                    continue
                for text in ("a\0bcdefgh", "\ud800bcdefgh"):
                    body = of.body(operation.schema) | {name: text}
                    names_field(await of.send(operation, body), name, (operation, name, text))


BROKEN = {
    "cut": b'{"name": "a',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "nested": b"[" * 100_000,
    "empty": b"",
    "a list": b"[1]",
    "null": b"null",
    "a number": b"1e999",
    "no JSON": b"name=a",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_body_that_is_no_json_object(tmp_path: Path, kind: str) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            answer = await of.send_raw(operation, BROKEN[kind], "application/json")
            document = problem_of(answer, (operation, kind))
            wanted = {400: "invalid_json", 422: "invalid_request"}
            assert document["code"] == wanted.get(answer.status_code), (operation, document)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "rubbish", None],
)
async def test_a_body_of_another_content_type(tmp_path: Path, content_type: str | None) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            body = json.dumps(of.body(operation.schema)).encode()
            document = problem_of(await of.send_raw(operation, body, content_type), operation)
            assert document["code"] == "unsupported_media_type", (operation, document)
            assert document["status"] == 415


async def test_ten_megabytes(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        for operation in of.operations():
            body = json.dumps(of.body(operation.schema) | {"more": "x" * 10_000_000}).encode()
            document = problem_of(await of.send_raw(operation, body, "application/json"), operation)
            assert (document["status"], document["code"]) == (413, "body_too_large"), operation


@pytest.mark.parametrize(
    "bad",
    ["x", "%00", "a" * 3000, "..%2F..", "%C3%A9", "' OR 1=1 --", "-1", "{device_id}", "%0A"],
)
async def test_an_id_of_the_wrong_form(tmp_path: Path, database_url: str | None, bad: str) -> None:
    async with described(tmp_path, database_url) as of:
        tried = 0
        for path, methods in of.document["paths"].items():
            ids = [name for name in re.findall(r"\{(\w+)\}", path) if name.endswith("_id")]
            for wrong in ids:
                named = of.objects | {wrong: bad}
                there = re.sub(r"\{(\w+)\}", lambda m, n=named: n.get(m[1], "x"), path)
                for method in methods.keys() - {"head"}:  # the answer to it has no body
                    operation = Operation(method.upper(), there, {})
                    content = methods[method].get("requestBody", {}).get("content", {})
                    schema = of.resolve(content.get("application/json", {}).get("schema", {}))
                    body = of.body(schema) if schema else {}
                    answer = await of.send(operation, body)
                    document = problem_of(answer, operation)
                    allowed = {400, 404, 405, 422}
                    if "browser-sessions" in path:
                        allowed |= {403}  # a program has none, whatever it names
                    assert answer.status_code in allowed, (operation, document)
                    tried += 1
        assert tried > 20


async def test_a_path_that_is_no_utf8_reaches_no_route(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        answer = await of.send(Operation("DELETE", "/api/devices/%FF", {}), {})
        assert (answer.status_code, answer.content) == (400, b"")  # the HTTP server's own answer


async def test_a_tenant_of_others_cannot_be_chosen(tmp_path: Path) -> None:
    async with described(tmp_path) as of:
        other = await person(of.api, "other", tenant="others")
        operations = [item for item in of.operations() if "tenant_id" in item.schema["properties"]]
        assert operations
        for operation in operations:
            body = of.body(operation.schema) | {"tenant_id": other.tenant_id}
            document = problem_of(await of.send(operation, body), operation)
            assert document["status"] in {403, 404}, (operation, document)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 422),
        (b"logout_token=", "application/x-www-form-urlencoded", 422),
        (b"logout_token=x", "application/x-www-form-urlencoded", 400),
        (b"logout_token=" + b"x" * 20_000, "application/x-www-form-urlencoded", 422),
        (b"logout_token=%00%ff", "application/x-www-form-urlencoded", 400),
        (b'{"logout_token": "x"}', "application/json", 422),
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x", 415),
        (b"logout_token=x&" * 2000, "application/x-www-form-urlencoded", 400),
    ],
)
async def test_a_logout_token_that_is_none(
    tmp_path: Path, body: bytes, content_type: str, status: int
) -> None:
    async with described(tmp_path) as of:
        operation = Operation("POST", "/api/auth/backchannel-logout", {})
        answer = await of.send_raw(operation, body, content_type)
        assert answer.status_code in {status, 502}, answer.text
        problem_of(answer, operation)


@pytest.mark.parametrize(
    "query",
    [
        "devices?name=%00",
        "devices?label=a%3D%00",
        "devices?after=%00",
        "audit?action=%00",
        "devices?limit=0",
        "devices?limit=x",
    ],
)
async def test_a_query_that_cannot_be_asked(
    tmp_path: Path, database_url: str | None, query: str
) -> None:
    async with described(tmp_path, database_url) as of:
        answer = await of.api.call("GET", f"/api/{query}", of.owner.token)
        document = problem_of(answer, query)
        assert (document["status"], document["code"]) == (422, "invalid_request"), document
