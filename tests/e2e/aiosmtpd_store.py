# SPDX-License-Identifier: GPL-3.0-or-later
"""A store that is aiosmtpd's own LMTP server (Debian: python3-aiosmtpd), which answers a message once for all.

Run by the system's Python, with the path of its socket; it prints the recipients of each message in a line. Nothing of
the proxy's or of the tests' is imported.
"""

import asyncio
import json
import sys
from typing import Any

if __name__ == "__main__":
    from aiosmtpd.lmtp import LMTP  # type: ignore[import-not-found,unused-ignore]

    class Store:
        """See aiosmtpd's documentation of handlers."""

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            print(json.dumps(envelope.rcpt_tos), flush=True)
            return "250 2.0.0 stored"

    async def serve(path: str) -> None:
        server = await asyncio.get_running_loop().create_unix_server(lambda: LMTP(Store(), hostname="store"), path)
        print("ready", flush=True)
        await server.serve_forever()

    asyncio.run(serve(sys.argv[1]))
