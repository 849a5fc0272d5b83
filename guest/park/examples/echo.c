// The smallest parked program: answers with its input in capitals. A request
// costs it one page of stack and the pages of the input itself.
#include "../forklet-park.h"

int main(void) {
  struct forklet forklet;
  if (forklet_open(&forklet) != 0) return 1;
  for (;;) {
    const long bytes = forklet_park(&forklet);
    if (bytes < 0) return 1;
    uint8_t* data = forklet_data(&forklet);
    for (long i = 0; i < bytes; i++) {
      if (data[i] >= 'a' && data[i] <= 'z') data[i] -= 'a' - 'A';
    }
    forklet_answer(&forklet, (size_t)bytes);
  }
}
