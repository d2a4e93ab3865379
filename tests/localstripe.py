"""localstripe, a stand-in for Stripe that is not ours and cannot agree with us by mistake, as a process of its own.

Source: https://github.com/adrienverge/localstripe
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: localstripe's own command listens on every interface and keeps its objects in a file of fixed name; this one
#: listens on loopback, on a port of the kernel's choice, and keeps them in memory.
_PROGRAM = """
import socket
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda self: None
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None, access_log=None)
"""


@contextmanager
def localstripe() -> Iterator[str]:
    """The URL of one that runs for this block."""
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
