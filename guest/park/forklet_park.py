"""Lets a Python program of the guest choose its own fork point.

    import forklet_park

    model = load_everything()
    forklet_park.serve(lambda request: model.answer(request))

The program stands still, in user mode, inside `Park.park()`. There the host
takes a snapshot, and every fork of it goes on at that very place with the input
of a request. Parking again is the answer. forklet-park.h is the same for C and
says more.

Needs forklet's own guest kernel, and no privilege. Part of forklet, Apache-2.0.
"""

import errno
import mmap
import os
import random
import struct

__all__ = ["DATA_BYTES", "Park", "serve"]

_PAGE = 4096
_EXCHANGE_PAGES = 15
_DATA_OFFSET = 256
DATA_BYTES = _EXCHANGE_PAGES * _PAGE - _DATA_OFFSET
"""Most that a request or an answer can have, in bytes."""

_PARK_REGISTER = 0x10 // 4
_REQUEST = 1
_YIELD = 2

# Indices of 32-bit words.
_VERSION, _STATE, _INPUT_BYTES, _OUTPUT_BYTES, _ERROR = range(5)


class Park:
    """The fork point. One program of a guest can stand at it at a time."""

    def __init__(self, device="/dev/forklet"):
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        self._doorbell = mmap.mmap(self._fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
        self._exchange = mmap.mmap(
            self._fd,
            _EXCHANGE_PAGES * _PAGE,
            mmap.MAP_SHARED,
            mmap.PROT_READ | mmap.PROT_WRITE,
            offset=2 * _PAGE,
        )
        # A 32-bit item of such a view is one load or store; `struct` with a byte
        # order goes byte by byte, and the doorbell takes nothing but words.
        self._registers = memoryview(self._doorbell).cast("I")
        self._words = memoryview(self._exchange).cast("I")
        self._generation = 0

    def close(self):
        self._registers.release()
        self._words.release()
        self._doorbell.close()
        self._exchange.close()
        os.close(self._fd)

    def park(self):
        """Answers the last request, and stands still until there is another: returns its bytes."""
        words = self._words
        while True:
            if self._registers[_PARK_REGISTER] != 1:
                raise OSError(errno.ENOTSUP, "no host that could hold this program")
            state = words[_STATE]
            if state == _REQUEST:
                if words[_VERSION] != 1:
                    raise OSError(errno.ENOTSUP, "the host is of another version")
                size = min(words[_INPUT_BYTES], DATA_BYTES)
                words[_OUTPUT_BYTES] = 0
                words[_ERROR] = 0
                return self._exchange[_DATA_OFFSET : _DATA_OFFSET + size]
            if state == _YIELD:
                # The rest of the guest runs until the host calls.
                os.read(self._fd, 8)

    def answer(self, data):
        """What the request is answered with; it leaves with the next `park()`."""
        self._put(data, 0)

    def fail(self, message):
        """The request has failed, and `message` says why."""
        self._put(message.encode("utf-8", "replace")[:DATA_BYTES], 1)

    def _put(self, data, error):
        size = len(data)
        if size > DATA_BYTES:
            raise ValueError(f"{size} bytes exceed the {DATA_BYTES} of an answer")
        self._exchange[_DATA_OFFSET : _DATA_OFFSET + size] = data
        self._words[_OUTPUT_BYTES] = size
        self._words[_ERROR] = error

    @property
    def sequence(self):
        """Number of the request."""
        return struct.unpack_from("<Q", self._exchange, 24)[0]

    @property
    def generation(self):
        """Random number of this machine: different in every fork."""
        return struct.unpack_from("<Q", self._exchange, 32)[0]

    @property
    def entropy(self):
        """64 random bytes, fresh for each request."""
        return self._exchange[40:104]

    def is_new(self):
        """True in the first request of each fork."""
        generation = self.generation
        new = generation != self._generation
        self._generation = generation
        return new


def serve(handle, park=None):
    """Answers every request with what `handle(bytes)` returns: bytes or str. Does not return.

    An exception makes the request fail with its text. In each fork `random` is
    seeded anew first; `os.urandom` and what builds on it is the kernel's
    business, and is renewed only where the host did not leave that to the
    program.
    """
    park = park or Park()
    while True:
        request = park.park()
        try:
            if park.is_new():
                random.seed(park.entropy)
            answer = handle(request)
            park.answer(answer.encode() if isinstance(answer, str) else answer)
        except Exception as error:
            park.fail(f"{type(error).__name__}: {error}")
