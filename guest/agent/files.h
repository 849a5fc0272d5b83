/* Files: FK_FILE. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct file_request {
  char* path;
  char* destination;
  uint64_t output_limit;
  uint64_t first, count; /* range; count UINT64_MAX: to the end */
  uint64_t size;
  int64_t accessed_ns, modified_ns;
  uint32_t user, group;
  uint32_t flags; /* enum fk_file_flag */
  uint32_t mode;
  uint32_t given; /* which records there were, a bit for each enum fk_tag */
};

static inline bool file_given(const struct file_request* request, uint32_t tag) {
  return (request->given & 1u << tag) != 0;
}

void file_request(uint32_t id, uint32_t op, uint8_t* payload, size_t bytes);

/* Opens a file that commands do not inherit, and without waiting for what is
   behind it. Returns -1 with errno. */
int file_open(const char* path, int flags, mode_t mode);
/* The same below an opened directory. */
int file_open_at(int directory, const char* path, int flags, mode_t mode);

/* A reply that names what failed, or what was asked for: at most FK_MAX_PATH bytes. */
void file_reply_path(uint32_t id, int error, const char* path, size_t bytes);

/* One function per enum fk_file_op. Each returns an errno for the reply, or -1
   when the reply is out already or an operation now takes care of it. */
int file_read(uint32_t id, const struct file_request* request);
int file_write(uint32_t id, const struct file_request* request);
int file_stat(uint32_t id, const struct file_request* request);
int file_readdir(uint32_t id, const struct file_request* request);
int file_mkdir(uint32_t id, const struct file_request* request);
int file_remove(uint32_t id, const struct file_request* request);
int file_rename(uint32_t id, const struct file_request* request);
int file_link(uint32_t id, const struct file_request* request);
int file_symlink(uint32_t id, const struct file_request* request);
int file_readlink(uint32_t id, const struct file_request* request);
int file_realpath(uint32_t id, const struct file_request* request);
int file_access(uint32_t id, const struct file_request* request);
int file_chmod(uint32_t id, const struct file_request* request);
int file_chown(uint32_t id, const struct file_request* request);
int file_utimes(uint32_t id, const struct file_request* request);
int file_truncate(uint32_t id, const struct file_request* request);
int file_copy(uint32_t id, const struct file_request* request);
int file_watch(uint32_t id, const struct file_request* request);
int file_unpack(uint32_t id, const struct file_request* request);
int file_pack(uint32_t id, const struct file_request* request);
