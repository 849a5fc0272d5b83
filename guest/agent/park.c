#include "park.h"

#include <errno.h>

#include "connection.h"
#include "machine.h"
#include "protocol.h"
#include "renew.h"

// What stops here goes on in the parent and in every fork, so nothing may be half done: everything
// that the agent has to say has left, and it stands between two frames.
static void stand(void) {
  machine_run_first();
  do {
    machine_park();
  } while (machine_mailbox()->flags & FK_MAILBOX_PARK_AGAIN);
  if (renew_is_due()) {
    renew_run();
  } else {
    machine_run_last();
  }
}

void park_request(uint32_t id, uint32_t mode) {
  int error = 0;
  if (mode != FK_PARK_STAND && mode != FK_PARK_FLUSH) {
    error = EPROTO;
  } else if (renew_is_running()) {
    error = EBUSY;
  } else if (mode == FK_PARK_STAND) {
    error = machine_open();
  }
  connection_reply(id, error);
  if (error != 0) return;
  connection_drain();
  if (mode == FK_PARK_STAND && connection_is_open()) stand();
}
