#pragma once

#include <linux/virtio_vsock.h>

#include <cstdint>

namespace forklet {

static_assert(sizeof(virtio_vsock_hdr) == 44, "virtio 1.2 §5.10.6");

inline constexpr uint64_t kVsockHostCid = 2;  // VMADDR_CID_HOST

// The host's ports for connections that it dials; those below are for services
// that the guest dials.
inline constexpr uint32_t kVsockFirstHostPort = 1024;
inline constexpr uint32_t kVsockAnyPort = 0xffffffff;  // VMADDR_PORT_ANY, no valid port

// The two ports that name a connection; the CIDs are those of host and guest.
struct VsockPorts {
  uint32_t host = 0;
  uint32_t guest = 0;

  constexpr uint64_t key() const { return uint64_t{host} << 32 | guest; }
  bool operator==(const VsockPorts&) const = default;
};

}  // namespace forklet
