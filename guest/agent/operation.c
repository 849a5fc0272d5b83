#include "operation.h"

#include <stdlib.h>

#include "connection.h"
#include "protocol.h"

enum {
  BUCKETS = 512,
  // Steps per turn: enough to fill the send buffer, few enough to look at requests often.
  ROUNDS_PER_TURN = 4,
};

static struct operation* buckets[BUCKETS];
static unsigned listed_count;

static struct operation* run_head;
static struct operation** run_tail = &run_head;
static struct operation* finished_head;

void* operation_new(const struct operation_type* type, uint32_t id, size_t bytes) {
  struct operation* operation = calloc(1, bytes);
  if (!operation) return NULL;
  operation->type = type;
  operation->id = id;
  operation->listed = true;
  operation->next_in_bucket = buckets[id % BUCKETS];
  buckets[id % BUCKETS] = operation;
  listed_count++;
  return operation;
}

struct operation* operation_find(uint32_t id) {
  struct operation* operation = buckets[id % BUCKETS];
  while (operation && operation->id != id) operation = operation->next_in_bucket;
  return operation;
}

bool operations_full(void) { return listed_count >= FK_MAX_OPERATIONS; }

void operation_schedule(struct operation* operation) {
  if (operation->scheduled || operation->finished) return;
  operation->scheduled = true;
  operation->next_to_run = NULL;
  *run_tail = operation;
  run_tail = &operation->next_to_run;
}

void operation_unlist(struct operation* operation) {
  if (!operation->listed) return;
  struct operation** link = &buckets[operation->id % BUCKETS];
  while (*link != operation) link = &(*link)->next_in_bucket;
  *link = operation->next_in_bucket;
  operation->listed = false;
  listed_count--;
}

void operation_finish(struct operation* operation) {
  operation_unlist(operation);
  if (operation->finished) return;
  operation->finished = true;
  operation->next_finished = finished_head;
  finished_head = operation;
}

static struct operation* take_first(void) {
  struct operation* operation = run_head;
  run_head = operation->next_to_run;
  if (!run_head) run_tail = &run_head;
  operation->scheduled = false;
  return operation;
}

bool operations_can_send(void) {
  return connection_room() >= sizeof(struct fk_header) + FK_MAX_PAYLOAD;
}

bool operations_runnable(void) { return run_head && operations_can_send(); }

void operations_run(void) {
  for (int round = 0; round < ROUNDS_PER_TURN && operations_runnable(); round++) {
    // What schedules itself again goes behind this marker, to the next round.
    struct operation** end = run_tail;
    bool last = false;
    while (!last && operations_runnable()) {
      struct operation* operation = take_first();
      last = end == &operation->next_to_run;
      if (!operation->finished) operation->type->run(operation);
    }
  }
}

void operations_free_finished(void) {
  struct operation** link = &finished_head;
  while (*link) {
    struct operation* operation = *link;
    if (operation->scheduled) {
      // Still in the run queue, which lets go of it when it gets there.
      link = &operation->next_finished;
      continue;
    }
    *link = operation->next_finished;
    free(operation);
  }
}
