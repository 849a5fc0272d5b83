// forklet-park.h stands alone, so that it can be copied into any program. Here
// the compiler holds it to the layout that the host knows.
#include "../agent/doorbell.h"
#include "../agent/exchange.h"
#include "forklet-park.h"

#define SAME(field)                                                                                \
  static_assert(                                                                                   \
      offsetof(struct forklet_exchange, field) == offsetof(struct fk_exchange, field) &&           \
          sizeof(((struct forklet_exchange*)0)->field) == sizeof(((struct fk_exchange*)0)->field), \
      "the same layout")

SAME(version);
SAME(state);
SAME(input_bytes);
SAME(output_bytes);
SAME(error);
SAME(sequence);
SAME(generation);
SAME(entropy);
SAME(realtime_ns);
SAME(tsc);
SAME(tsc_khz);
SAME(data);
static_assert(sizeof(struct forklet_exchange) == sizeof(struct fk_exchange), "the same size");
static_assert(FORKLET_EXCHANGE_PAGES == FK_EXCHANGE_PAGES, "the same size");
static_assert(FK_DOORBELL_PARK_PROGRAM == 0x10, "the register that forklet_park() reads");
static_assert(FK_PAGE_DOORBELL == 0 && FK_PAGE_EXCHANGE == 2, "the pages that it maps");
static_assert(FK_EXCHANGE_VERSION == 1 && FK_EXCHANGE_REQUEST == 1 && FK_EXCHANGE_YIELD == 2,
              "the numbers that it compares with");
