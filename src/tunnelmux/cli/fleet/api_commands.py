"""Commands on devices, run by tunnelmux-api for a person who signed in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from tunnelmux.backend import CommandEvents
from tunnelmux.cli.fleet.api_client import ApiClient
from tunnelmux.commands import CommandRequest

__all__ = ["ApiCommands"]


class ApiCommands:
    """What `ProxyClient.exec` is, by `POST /api/exec`."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @asynccontextmanager
    async def exec(
        self,
        devices: Sequence[str],
        request: CommandRequest,
        *,
        concurrency: int | None = None,
        abort_on_error: bool = False,
        asked_by: str | None = None,
    ) -> AsyncIterator[CommandEvents]:
        """Run a command on these devices (names, patterns, `all`), for the length of the block.

        The API knows who asks. Raises FleetError when nothing was run, and ConnectError when the
        connection is lost: then the API ends what runs.
        """
        del asked_by
        content = {
            name: value
            for name, value in request.to_json().items()
            if name not in {"commandId", "serverId"} and value is not None
        }
        content["devices"] = ["*" if name == "all" else name for name in devices]
        content["abortOnError"] = abort_on_error
        content["timeout"] = max(round(request.timeout * 1000), 1)
        if concurrency is not None:
            content["concurrency"] = concurrency
        fields = [(b"Accept", b"application/x-ndjson")]
        async with self._client.open("POST", "/api/exec", content, fields=fields) as connection:
            events = CommandEvents(connection)
            with trio.fail_after(30):  # the API begins before it has asked a proxy
                await events.begin()
            yield events
