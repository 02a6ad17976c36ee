"""The specification's sample agent for Python on python-socketio 4, which speaks Engine.IO 3.

That version knows no `auth`: proxyId and apiKey are in the URL's query. What the sample leaves
open, execute_command, runs the command on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from urllib.parse import urlencode

import socketio

NAMESPACE = os.getenv("NAMESPACE", "/proxy")

sio = socketio.AsyncClient()


def tell(event, **more):
    """For the test that looks on."""
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


@sio.on("connect", namespace=NAMESPACE)
async def on_connect():
    tell("connected", transport=sio.transport())


@sio.on("connect_error", namespace=NAMESPACE)
async def on_connect_error(*data):
    tell("refused", message=str(data[0] if data else ""))


@sio.on("disconnect", namespace=NAMESPACE)
async def on_disconnect():
    tell("disconnected")


@sio.on("command_result_received", namespace=NAMESPACE)
async def on_received(data):
    tell("received", data=data)


@sio.on("execute_command", namespace=NAMESPACE)
async def on_execute_command(data):
    process = await asyncio.create_subprocess_shell(
        data["command"], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), data["timeout"] / 1000)
    result = {"stdout": out.decode(), "stderr": err.decode(), "exitCode": process.returncode}
    content = {"commandId": data["commandId"], "result": result}
    await sio.emit("command_result", content, namespace=NAMESPACE)


async def main():
    query = urlencode({"proxyId": os.environ["PROXY_ID"], "apiKey": os.environ["API_KEY"]})
    options = json.loads(os.getenv("CLIENT_OPTIONS", "{}"))
    url = f"{os.environ['SERVER_URL']}{NAMESPACE}?{query}"
    await sio.connect(url, namespaces=[NAMESPACE], **options)
    await sio.wait()


if __name__ == "__main__":
    asyncio.run(main())
