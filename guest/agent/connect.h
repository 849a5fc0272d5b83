/* TCP connections of the host to the guest's loopback: FK_CONNECT. */
#pragma once

#include <stddef.h>
#include <stdint.h>

void connect_request(uint32_t id, uint8_t* payload, size_t bytes);

/* Resets all of them. */
void connect_end_all(void);
