/* Commands: FK_EXEC. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void exec_request(uint32_t id, uint8_t* payload, size_t bytes);

/* Reaps every zombie, and answers for commands that are over. True when there
   may be more: bounded per call. */
bool exec_reap(void);

/* Looks whether the process groups of cancelled commands are gone. */
void exec_check_cancelled(void);
/* How long epoll may wait before exec_check_cancelled() is due; -1: for ever. */
int exec_wait_ms(void);

/* Kills every command's process group. */
void exec_kill_all(void);
