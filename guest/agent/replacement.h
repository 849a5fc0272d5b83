/* Files that are written beside their place, and take it when they are complete. */
#pragma once

#include "files.h"

struct replacement;

/* Makes the temporary file; bytes go to `*fd`, which is the caller's. Returns 0
   or an errno. */
int replacement_begin(const struct file_request* request, struct replacement** result, int* fd);

/* Without an `error` of the caller's, puts the file in its place; otherwise
   removes it. Returns `error`, or the errno of what failed: nothing is left
   then. Frees `replacement`. */
int replacement_end(struct replacement* replacement, int error);
