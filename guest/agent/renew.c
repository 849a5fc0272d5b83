#include "renew.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "connect.h"
#include "connection.h"
#include "hooks.h"
#include "log.h"
#include "machine.h"
#include "ports.h"
#include "protocol.h"
#include "records.h"

static const char machine_id_path[] = "/etc/machine-id";
static const char generation_path[] = "/run/forklet/generation";

// Whom the agent takes this machine for: 0 after a boot.
static uint64_t known;

static enum { DONE, HOOKS, REPORT } state;

// The first failure of this renewal.
static enum fk_renew_stage failed_stage;
static int failed_error;

static void failed(enum fk_renew_stage stage, int error) {
  if (error == 0 || failed_error != 0) return;
  failed_stage = stage;
  failed_error = error;
}

static void full_path(char path[PATH_MAX], const char* name) {
  snprintf(path, PATH_MAX, "%s%s", machine_root(), name);
}

// Writes over what is there, so that whoever watches the file or has it open sees it change.
// Returns 0 or an errno.
static int rewrite(const char* name, int flags, const char* text) {
  char path[PATH_MAX];
  full_path(path, name);
  // Not blocking: the image may have anything there.
  const int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | flags, 0644);
  if (fd < 0) return errno;
  const size_t bytes = strlen(text);
  int error = 0;
  const ssize_t count = pwrite(fd, text, bytes, 0);
  if (count < 0) {
    error = errno;
  } else if ((size_t)count < bytes) {
    error = ENOSPC;
  } else {
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_size > (off_t)bytes) {
      error = ftruncate(fd, (off_t)bytes) < 0 ? errno : 0;
    }
  }
  close(fd);
  return error;
}

static int write_generation(void) {
  char text[32];
  snprintf(text, sizeof(text), "%016" PRIx64 "\n", known);
  const int error = rewrite(generation_path, O_CREAT, text);
  if (error != ENOENT) return error;
  char directory[PATH_MAX];
  full_path(directory, generation_path);
  *strrchr(directory, '/') = 0;
  if (mkdir(directory, 0755) < 0) return errno;
  return rewrite(generation_path, O_CREAT, text);
}

void renew_prepare(void) {
  const int error = write_generation();
  if (error != 0) log_error(generation_path, error);
}

static int set_clock(const struct fk_mailbox* mailbox) {
  int64_t ns = mailbox->realtime_ns;
  const uint64_t now = machine_tsc();
  // A TSC that went back would be another than the host means.
  if (mailbox->tsc_khz != 0 && now > mailbox->tsc) {
    const uint64_t ticks = now - mailbox->tsc;
    const uint64_t khz = mailbox->tsc_khz;
    ns += (int64_t)(ticks / khz * 1000000 + ticks % khz * 1000000 / khz);
  }
  return machine_set_clock(ns);
}

static int set_hostname(const struct fk_mailbox* mailbox) {
  if (mailbox->hostname_bytes == 0) return 0;
  if (mailbox->hostname_bytes > FK_HOSTNAME_BYTES) return EINVAL;
  return machine_set_hostname(mailbox->hostname, mailbox->hostname_bytes);
}

static int set_machine_id(const struct fk_mailbox* mailbox) {
  static const uint8_t none[sizeof(mailbox->id)];
  if (memcmp(mailbox->id, none, sizeof(none)) == 0) return 0;
  char text[2 * sizeof(mailbox->id) + 2];
  for (size_t i = 0; i < sizeof(mailbox->id); i++) {
    snprintf(text + 2 * i, 3, "%02x", mailbox->id[i]);
  }
  snprintf(text + 2 * sizeof(mailbox->id), 2, "\n");
  const int error = rewrite(machine_id_path, 0, text);
  return error == ENOENT ? 0 : error;
}

bool renew_is_due(void) {
  const struct fk_mailbox* mailbox = machine_mailbox();
  return mailbox->version == FK_MAILBOX_VERSION && mailbox->generation != known;
}

bool renew_is_running(void) { return state != DONE; }

static void report(void) {
  if (connection_room() < CONNECTION_REPLY_ROOM) return;
  uint8_t payload[16 + HOOKS_FAILURE_BYTES];
  uint8_t* end = payload;
  if (failed_error != 0) end = record_put_u32(end, FK_TAG_STAGE, (uint32_t)failed_stage);
  if (failed_stage == FK_RENEW_HOOK) end = hooks_put_failure(end);
  const struct fk_header header = {.payload_bytes = (uint32_t)(end - payload),
                                   .type = FK_RENEWED,
                                   .value = (uint32_t)failed_error,
                                   .offset = known};
  connection_send(&header, payload);
  state = DONE;
}

static void give_up(uint64_t generation, int error) {
  // Not `known`: another FK_RENEW tries again.
  const struct fk_header header = {.payload_bytes = sizeof(struct fk_record) + sizeof(uint32_t),
                                   .type = FK_RENEWED,
                                   .value = (uint32_t)error,
                                   .offset = generation};
  uint8_t payload[sizeof(struct fk_record) + sizeof(uint32_t)];
  record_put_u32(payload, FK_TAG_STAGE, FK_RENEW_ENTROPY);
  connection_send(&header, payload);
}

// Ordering requirements:
//  - the random pool before everything else, so that nothing in this machine gets a number that its
//    siblings get;
//  - the entropy is wiped before the other vCPUs run, since any program may read the mailbox;
//  - nothing that waits for another CPU before machine_reseeded(): until then the others stand
//  still.
void renew_run(void) {
  struct fk_mailbox* mailbox = machine_mailbox();
  const uint64_t generation = mailbox->generation;
  const int error = machine_seed(mailbox->entropy);
  if (error != 0) {
    machine_run_last();
    give_up(generation, error);
    return;
  }
  explicit_bzero(mailbox->entropy, sizeof(mailbox->entropy));
  machine_reseeded(generation);
  machine_run_last();
  known = generation;
  // The other ends of these are in the machine that this one was forked from.
  connect_end_all();
  ports_end_all();
  failed_stage = 0;
  failed_error = 0;
  failed(FK_RENEW_CLOCK, set_clock(mailbox));
  failed(FK_RENEW_HOSTNAME, set_hostname(mailbox));
  failed(FK_RENEW_MACHINE_ID, set_machine_id(mailbox));
  failed(FK_RENEW_GENERATION, write_generation());
  hooks_start(known);
  state = HOOKS;
  renew_turn();
}

void renew_request(void) {
  const int error = machine_open();
  if (error != 0) {
    give_up(0, error);
  } else if (renew_is_due()) {
    renew_run();
  } else if (state == DONE) {
    // `failed_*` are still those of the renewal that made this machine what it is.
    report();
  }
}

void renew_turn(void) {
  if (state == HOOKS) hooks_check_deadline();
  if (state == HOOKS && hooks_are_done()) {
    failed(FK_RENEW_HOOK, hooks_error());
    state = REPORT;
  }
  if (state == REPORT) report();
}

int renew_wait_ms(void) { return state == HOOKS ? hooks_wait_ms() : -1; }
