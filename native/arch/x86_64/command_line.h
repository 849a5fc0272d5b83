#pragma once

#include <cstdint>
#include <string>

#include "arch/x86_64/host_profile.h"
#include "base/result.h"

namespace forklet {

// The guest kernel's command line: what every guest gets, what the host's
// quirks ask for, `virtio_devices` virtio-mmio devices, and the caller's own
// arguments last, so that they win.
Result<std::string> ComposeCommandLine(const HostProfile& host, uint32_t virtio_devices,
                                       const std::string& extra);

}  // namespace forklet
