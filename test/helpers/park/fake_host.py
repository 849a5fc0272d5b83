"""The same as fake_host.h for forklet_park.py: answers with its argument's function."""

import os
import sys

sys.path.insert(0, sys.argv[1])
import forklet_park  # noqa: E402


class Registers:
    def __getitem__(self, index):
        os.write(4, bytes([4 * index]))
        value = os.read(3, 1)
        if not value:
            sys.exit(0)
        return value[0]


def handle(request):
    if request == b"fail":
        raise ValueError("as asked")
    if request == b"long":
        return bytes(forklet_park.DATA_BYTES + 1)
    if request == b"who":
        return f"{park.sequence} {park.generation:x} {park.entropy.hex()} {park.is_new()}"
    return request.upper()


park = forklet_park.Park(os.environ["FORKLET_TEST_DEVICE"])
park._registers.release()
park._registers = Registers()
try:
    forklet_park.serve(handle, park)
except OSError as error:
    sys.exit(str(error))
