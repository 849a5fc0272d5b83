#pragma once

// Loads the kernel modules that the host has packed beside this program, in its order. Does nothing
// where there are none. What cannot be loaded is logged and left out.
void modules_load(void);
