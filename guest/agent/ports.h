/* Waiting until something listens at a TCP port: FK_WAIT_PORT. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool port_is_valid(uint32_t port) { return port >= 1 && port <= 65535; }

void port_wait_request(uint32_t id, uint8_t* payload, size_t bytes);

/* Called in each turn of the loop. */
void ports_turn(void);
/* Until ports_turn() has something to do, in milliseconds; -1: not by itself. */
int ports_wait_ms(void);

/* Nobody waits any more. */
void ports_end_all(void);
