"""Lists and calls tools with the official Python client, of version 1 or 2: prints what it saw as JSON.

python client.py <url> <headers as JSON> <tool> <arguments as JSON>
"""

import asyncio
import json
import sys

from mcp import ClientSession

url, headers, tool, arguments = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])


async def use(read, write, *_):
    async with ClientSession(read, write) as session:
        started = await session.initialize()
        names = [tool.name for tool in (await session.list_tools()).tools]
        seen = []

        async def progress(done, total, message):
            seen.append(done)

        result = await session.call_tool(tool, arguments, progress_callback=progress)
        version = getattr(started, "protocolVersion", None) or getattr(started, "protocol_version", None)
        print(json.dumps({"version": version, "tools": names, "text": result.content[0].text, "progress": seen}))


async def main():
    try:
        from mcp.client.streamable_http import streamablehttp_client
    except ImportError:
        # Its own fork of httpx, which only this version brings.
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers=headers, timeout=60) as client:
            async with streamable_http_client(url, http_client=client) as streams:
                await use(*streams)
        return
    async with streamablehttp_client(url, headers=headers) as streams:
        await use(*streams)


asyncio.run(main())
