/* Operations: requests of the host that take more than one step. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct operation;

/* What an operation does. Each function may end the operation. */
struct operation_type {
  /* Makes bounded progress; called after operation_schedule(). */
  void (*run)(struct operation*);
  /* Ends it early; the reply carries `error`. */
  void (*cancel)(struct operation*, int error);
  /* Bytes of FK_INPUT, then its end. NULL: the operation has no input. */
  void (*input)(struct operation*, uint64_t offset, const uint8_t* bytes, size_t count, bool end);
  /* The host grants bytes of an output stream up to `limit`, or NULL. */
  void (*window)(struct operation*, uint16_t stream, uint64_t limit);
  /* FK_SIGNAL, or NULL. */
  void (*signal)(struct operation*, uint32_t number);
  /* FK_RESIZE, or NULL. */
  void (*resize)(struct operation*, uint16_t columns, uint16_t rows);
};

struct operation {
  const struct operation_type* type;
  uint32_t id;
  bool listed;    /* found by its id */
  bool scheduled; /* in the run queue */
  bool finished;  /* freed at the end of the turn */
  struct operation* next_in_bucket;
  struct operation* next_to_run;
  struct operation* next_finished;
};

/* Allocates `bytes` zeroed bytes that start with a struct operation, findable
   by `id`. NULL without memory. */
void* operation_new(const struct operation_type* type, uint32_t id, size_t bytes);
struct operation* operation_find(uint32_t id);
bool operations_full(void);

/* Has type->run called in this turn, or in the next. */
void operation_schedule(struct operation* operation);

/* The host is done with it (its reply is out): the id is free again. */
void operation_unlist(struct operation* operation);
/* Unlists it and frees it at the end of the turn. */
void operation_finish(struct operation* operation);

/* Runs what is scheduled, round-robin, while there is room to send. */
void operations_run(void);
/* True when operations_run() would run something. */
bool operations_runnable(void);
/* True when there is room for a frame of the largest size. */
bool operations_can_send(void);
void operations_free_finished(void);
