"""An agent as a process, in a network whose only way out is an HTTP proxy."""

from __future__ import annotations

import pytest

from support.http_proxy import connect_proxy
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

NAME = "tunnel.only-at-the-proxy.invalid"


async def test_an_agent_finds_the_proxy_in_its_environment_and_logs_no_password(
    tunnel: Tunnel, web: Address
) -> None:
    tunnel.daemons.secrets |= {"s3cret-of-http-proxy", "czNjcmV0LW9mLWh0dHAtcHJveHk"}
    await tunnel.start_proxy()
    port = tunnel.at_tunnel.port
    configuration = tunnel.agent_file({"web": f"http://{web}"}).replace(
        str(tunnel.at_tunnel), f"{NAME}:{port}"
    )
    refusal = b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    async with connect_proxy(refusal, names={NAME: "127.0.0.1"}) as http:
        where = f"http://user:s3cret-of-http-proxy@127.0.0.1:{http.port}"
        agent = await tunnel.daemons.start(
            "agent", configuration, environ={"http_proxy": where, "no_proxy": "example.com"}
        )
        refused = await agent.logged("not connected")
        assert f"the HTTP proxy 127.0.0.1:{http.port} refused to connect to {NAME}:{port}: 407" in (
            str(refused["cause"])
        )
        assert "check user and password in http_proxy" in str(refused["cause"])
        http.answer = b""
        await agent.logged("session started")
        await tunnel.still_works()
        assert set(http.asked) == {f"{NAME}:{port}"}
