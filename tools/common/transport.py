"""The bytes that this process has sent to others, by the kernel's own count of every TCP socket.

gloo sends through TCP sockets, so this is what a step of training really sent, with the headers of gloo and without
those of TCP. Nothing of torch or of topkast counts here.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_BYTES_SENT = 200  # where struct tcp_info of linux/tcp.h has tcpi_bytes_sent, since Linux 4.19
_RETRANSMITTED = 208


def bytes_sent() -> int:
    """The bytes that all open TCP sockets of this process have sent, each byte once.

    Raises:
        OSError: the kernel does not count them.
    """
    return sum(_sent(one) for one in _sockets())


def _sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # the descriptor of the listing itself
        with one:
            if one.type == socket.SOCK_STREAM and one.family in (socket.AF_INET, socket.AF_INET6):
                yield one


def _sent(one: socket.socket) -> int:
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _RETRANSMITTED + 8:
        raise OSError("this kernel does not count the bytes of a TCP socket: Linux 4.19 or newer is needed")
    sent, again = (struct.unpack_from("=Q", info, offset)[0] for offset in (_BYTES_SENT, _RETRANSMITTED))
    return sent - again
