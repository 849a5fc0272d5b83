/* Standing still, so that the host can freeze the machine. */
#pragma once

#include <stdint.h>

/* FK_PARK. */
void park_request(uint32_t id, uint32_t mode);
