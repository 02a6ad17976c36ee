"""The specification's sample agent for Python, on python-socketio's AsyncClient.

What it leaves open, execute_command, runs the command on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import socketio

config = {
    "server_url": os.getenv("SERVER_URL", "http://localhost:3000"),
    "proxy_id": os.getenv("PROXY_ID", "proxy-1"),
    "api_key": os.getenv("API_KEY", "your-api-key"),
}

sio = socketio.AsyncClient()


def tell(event, **more):
    """For the test that looks on."""
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


@sio.event
async def connect():
    tell("connected", transport=sio.transport())


@sio.event
async def disconnect():
    tell("disconnected")


@sio.event
async def connect_error(data):
    tell("refused", message=data["message"] if isinstance(data, dict) else str(data))


@sio.on("command_result_received")
async def on_received(data):
    tell("received", data=data)


@sio.on("execute_command")
async def on_execute_command(data):
    try:
        result = await execute_command(data)
        await sio.emit("command_result", {"commandId": data["commandId"], "result": result})
    except Exception as e:
        await sio.emit(
            "command_result",
            {
                "commandId": data["commandId"],
                "result": {"stdout": "", "stderr": str(e), "exitCode": 1},
            },
        )


async def execute_command(data):
    if data["command"] == "throw":
        raise ValueError("it threw")
    process = await asyncio.create_subprocess_shell(
        data["command"], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), data["timeout"] / 1000)
    return {"stdout": out.decode(), "stderr": err.decode(), "exitCode": process.returncode}


async def main():
    await sio.connect(
        f"{config['server_url']}/proxy",
        auth={"proxyId": config["proxy_id"], "apiKey": config["api_key"]},
        **json.loads(os.getenv("CLIENT_OPTIONS", "{}")),
    )
    await sio.wait()


if __name__ == "__main__":
    asyncio.run(main())
