/* Byte streams between descriptors of the guest and the host, under windows. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backlog.h"
#include "loop.h"
#include "operation.h"

enum outlet_kind {
  OUTLET_FILE,     /* put into the loop when it first has nothing to read */
  OUTLET_PIPE,     /* in the loop from the start; a short read means that it is empty */
  OUTLET_SOCKET,   /* in the loop from the start; a short read may have ended at an urgent byte */
  OUTLET_TERMINAL, /* in the loop from the start; a short read means nothing, and EIO is the end */
};

/* A stream to the host: what can be read from `fd`. */
struct outlet {
  struct watch watch;
  struct operation* owner;
  int fd;          /* -1: none */
  uint16_t stream; /* enum fk_stream */
  enum outlet_kind kind;
  bool watched;       /* in the loop */
  bool readable;      /* may have bytes */
  bool muted;         /* the loop does not tell of further bytes */
  bool hangup;        /* no writers, or their end has arrived: what is in it is all */
  bool ended;         /* FK_END is out */
  uint64_t sent;      /* offset of the next byte */
  uint64_t limit;     /* what the host has granted */
  uint64_t remaining; /* bytes until the end, UINT64_MAX: to the end of file */
};

enum progress {
  PROGRESS_WAIT,   /* for an event or a window */
  PROGRESS_AGAIN,  /* more can be done now, or after a flush */
  PROGRESS_ENDED,  /* FK_END is out */
  PROGRESS_FAILED, /* errno says why */
};

/* `fd` is non-blocking. Returns 0 or an errno. */
int outlet_open(struct outlet* outlet, struct operation* owner, int fd, uint16_t stream,
                enum outlet_kind kind);
/* Sends at most one frame of data. */
enum progress outlet_pump(struct outlet* outlet);
void outlet_window(struct outlet* outlet, uint64_t limit);
/* The stream ends with what is in the pipe now, whoever still writes to it. */
void outlet_end_with_present(struct outlet* outlet);
/* The stream ends at once with FK_END, which there is room for. */
void outlet_end_now(struct outlet* outlet);
/* After the end: reads and drops what late writers send, and closes after the
   last of them. */
void outlet_discard(struct outlet* outlet);
void outlet_close(struct outlet* outlet);

/* A stream from the host: written to `fd`. */
struct inlet {
  struct watch watch;
  struct operation* owner;
  int fd;                 /* -1: none, or done; bytes are dropped */
  bool socket;            /* its end is told to the peer: others have the socket open as well */
  bool watched;           /* in the loop */
  bool end;               /* FK_END has come */
  bool terminal;          /* its end is typed */
  bool partial;           /* the last line has not been ended */
  uint32_t window;        /* bytes that the host may be ahead */
  uint64_t received;      /* offset of the next byte from the host */
  uint64_t granted;       /* what the host may send */
  struct backlog backlog; /* what the descriptor did not take */
};

void inlet_open(struct inlet* inlet, struct operation* owner, int fd, uint32_t window);
/* Has the owner run when `fd` takes bytes. Returns 0 or an errno. */
int inlet_watch(struct inlet* inlet);
/* Takes bytes, or the end, of the host. Returns 0, EPROTO when the host broke
   the rules, or the errno of write. */
int inlet_input(struct inlet* inlet, uint64_t offset, const uint8_t* bytes, size_t count, bool end);
/* Goes on writing what is held. Returns 0 or an errno. */
int inlet_pump(struct inlet* inlet);
/* True after the end has come and everything is written. */
bool inlet_is_done(const struct inlet* inlet);
/* Later input is dropped. */
void inlet_close(struct inlet* inlet);
