/* Files: FK_FILE. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct file_request {
  char* path;
  uint64_t output_limit;
  uint64_t first, count; /* range; count UINT64_MAX: to the end */
  uint32_t flags;        /* enum fk_file_flag */
  uint32_t mode;
};

void file_request(uint32_t id, uint32_t op, uint8_t* payload, size_t bytes);

/* One function per enum fk_file_op. Each returns an errno for the reply, or -1
   when the reply is out already or an operation now takes care of it. */
int file_read(uint32_t id, const struct file_request* request);
int file_write(uint32_t id, const struct file_request* request);
int file_stat(uint32_t id, const struct file_request* request);
int file_readdir(uint32_t id, const struct file_request* request);
int file_mkdir(uint32_t id, const struct file_request* request);
int file_remove(uint32_t id, const struct file_request* request);
