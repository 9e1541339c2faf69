"""Python imports this module at start, if it is on the path: it blocks connections to other machines."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from typing import Any


def is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host or ""
    try:
        return name in ("", "localhost") or ip_address(name).is_loopback or ip_address(name).is_unspecified
    except ValueError:  # a host name other than localhost
        return False


def refuse_remote_hosts(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not is_local(host):
        raise PermissionError(f"no network here, and so not {host}")


sys.addaudithook(refuse_remote_hosts)
