#pragma once

#include "base/state_io.h"
#include "devices/serial.h"
#include "devices/virtio/mmio.h"
#include "devices/virtio/vsock.h"

namespace forklet {

// The state of all devices of a VM. The entropy device has none but its
// transport's, and the doorbell none at all.
struct DevicesState {
  Serial::State serial;
  VirtioMmio::State vsock_transport;
  VirtioMmio::State rng_transport;
  VsockDevice::State vsock;

  bool operator==(const DevicesState&) const = default;
};

// States as bytes. Reading checks the encoding and bounds every allocation; what
// the values mean is checked by the devices' Restore. After a false a state is
// half read, of no use, and safe to drop.
void WriteState(StateWriter& out, const Serial::State& state);
[[nodiscard]] bool ReadState(StateReader& in, Serial::State& state);

void WriteState(StateWriter& out, const QueueState& state);
[[nodiscard]] bool ReadState(StateReader& in, QueueState& state);

void WriteState(StateWriter& out, const VirtioMmio::State& state);
[[nodiscard]] bool ReadState(StateReader& in, VirtioMmio::State& state);

void WriteState(StateWriter& out, const VsockConnectionState& state);
[[nodiscard]] bool ReadState(StateReader& in, VsockConnectionState& state);

void WriteState(StateWriter& out, const VsockDevice::State& state);
[[nodiscard]] bool ReadState(StateReader& in, VsockDevice::State& state);

void WriteState(StateWriter& out, const DevicesState& state);
[[nodiscard]] bool ReadState(StateReader& in, DevicesState& state);

}  // namespace forklet
