/* The control connection: frames in, frames out, both through bounded buffers. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

/* Room that must be free before a frame of the host is looked at, so that
   whatever answers it at once (at most a window and a reply, which may have a
   path) always fits. */
enum { CONNECTION_REPLY_ROOM = 4608 };

/* Takes over the connected stream socket `fd`. Returns 0 or an errno. */
int connection_open(int fd);
bool connection_is_open(void);

/* True when complete frames or unsent bytes wait and could be worked on now. */
bool connection_has_work(void);

/* Handles the frames that have arrived, for a moment, and as long as there is
   room to answer. */
void connection_parse(void);

/* Sends what has been put together, in one go. */
void connection_flush(void);

/* Sends everything, lazy frames as well, and waits until it has left this
   machine. Handles no frame meanwhile. */
void connection_drain(void);

/* Bytes that may still be put together before a flush. */
size_t connection_room(void);

/* Appends a frame. Room of sizeof(struct fk_header) + header->payload_bytes is
   the caller's to check; a frame that does not fit ends the connection. */
void connection_send(const struct fk_header* header, const void* payload);

/* Appends a reply without records. */
void connection_reply(uint32_t id, int error);

/* Appends FK_STARTED. When `lazy` it is not by itself worth a packet: it
   leaves with the frame after it. */
void connection_started(uint32_t id, pid_t pid, bool lazy);

/* For data that is read straight into the send buffer: where the payload of
   the next frame goes, and how much of it fits (0: wait for a flush). */
uint8_t* connection_data_begin(size_t* room);
/* Makes it a frame of header->payload_bytes bytes. */
void connection_data_commit(const struct fk_header* header);

/* The host broke the protocol: says so and closes. */
void connection_fatal(const char* reason);
