/* Messages to the kernel's log, which the console shows. */
#pragma once

/* Says that `what` failed with `error`. For trouble that a program in the guest
   may notice and nobody else would report. */
void log_error(const char* what, int error);
