/* Routes frames of the host to operations. */
#pragma once

#include <stdint.h>

#include "protocol.h"

/* Sends the first frame. */
void control_hello(void);

/* Handles one frame. `payload` may be modified, and is gone after the call. It
   is NULL when there was no memory for it. */
void control_frame(const struct fk_header* header, uint8_t* payload);
