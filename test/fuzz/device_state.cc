// A saved state that anybody may have written: it is read, restored into
// devices, and those are driven by a guest whose memory is the fuzzer's as well.
#include <memory>

#include "../native/virtio_driver.h"
#include "devices/virtio/rng.h"
#include "fuzz_input.h"
#include "snapshot/device_state.h"

namespace forklet::fuzzing {
namespace {

constexpr uint64_t kMemoryBytes = 0x10000;
constexpr VsockConfig kConfig{.guest_cid = 3, .buffer_bytes = 4096, .max_connections = 8};

// What a run does: bits of the input's first byte.
constexpr uint8_t kRawState = 1;  // Instead of a good state with some bytes changed
constexpr uint8_t kForgetDelivered = 2;
constexpr uint8_t kResetOthers = 4;

class QuietHost final : public VsockHost {
 public:
  bool OnConnect(uint32_t) override { return true; }
  void OnOpened(ConnectionId, uint32_t) override {}
  void OnData(ConnectionId, std::vector<uint8_t> data) override { CHECK(!data.empty()); }
  void OnEnd(ConnectionId) override {}
  void OnSent(ConnectionId, size_t bytes) override { CHECK(bytes > 0); }
  void OnClosed(ConnectionId) override {}
};

template <class State>
std::vector<uint8_t> ToBytes(const State& state) {
  StateWriter out;
  WriteState(out, state);
  return std::move(out).Take();
}

VirtioMmio::State StartedTransport(std::initializer_list<uint16_t> sizes) {
  VirtioMmio::State state;
  state.status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                 VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
  state.driver_features = uint64_t{1} << VIRTIO_F_VERSION_1 | uint64_t{1}
                                                                  << VIRTIO_RING_F_EVENT_IDX;
  uint64_t base = 0;
  for (uint16_t size : sizes) {
    state.queues.push_back({.size = size,
                            .ready = true,
                            .descriptors = {base},
                            .available = {base + 0x400},
                            .used = {base + 0x600}});
    base += 0x1000;
  }
  return state;
}

// The state of a VM at work, in which the fuzzer changes bytes.
std::vector<uint8_t> PatchedState(FuzzInput& input) {
  DevicesState state;
  state.vsock_transport = StartedTransport({16, 64, 8});
  state.rng_transport = StartedTransport({8});
  for (uint32_t i = 1; i <= 3; ++i) {
    VsockDevice::State::Connection connection;
    connection.state.id = ConnectionId{i};
    connection.state.ports = {.host = 1, .guest = i};
    if (i < 3) {
      connection.state.phase = VsockConnectionState::Phase::kOpen;
      connection.state.peer_buffer_bytes = 1024;
      connection.queued.assign(size_t{100} * i, 7);
    } else {
      connection.state.send_request = true;
    }
    state.vsock.connections.push_back(std::move(connection));
    state.vsock.ready.push_back(ConnectionId{i});
  }
  state.vsock.next_id = 4;
  state.vsock.resets.push_back({{.host = 9, .guest = 9}, VIRTIO_VSOCK_TYPE_STREAM});
  state.serial.input.assign(10, 'x');
  std::vector<uint8_t> bytes = ToBytes(state);
  for (uint8_t patches = input.Take<uint8_t>() % 16; patches > 0; --patches) {
    const size_t at = input.Take<uint16_t>() % bytes.size();
    bytes[at] = input.Take<uint8_t>();
  }
  return bytes;
}

// What was read is written as it was, so that nothing is lost on the way.
void CheckRoundTrip(const DevicesState& state) {
  const std::vector<uint8_t> bytes = ToBytes(state);
  StateReader in(bytes);
  DevicesState again;
  CHECK(ReadState(in, again) && in.Finish());
  CHECK(again == state);
}

void Drive(const GuestMemory& memory, const DevicesState& state, uint8_t steps) {
  testing::CountingLine line;
  QuietHost host;
  VsockDevice vsock(kConfig, host);
  RngDevice rng;
  const auto vsock_transport = VirtioMmio::Create(vsock, memory, line).value();
  const auto rng_transport = VirtioMmio::Create(rng, memory, line).value();
  Serial serial(line, [](uint8_t) {});

  // Each on its own, so that one that is refused does not shield the others.
  if (serial.Restore(state.serial).ok()) CHECK(serial.Save() == state.serial);
  if (vsock.Restore(state.vsock).ok()) {
    CHECK(vsock.Save().connections == state.vsock.connections);
    CHECK(vsock.connection_count() <= kConfig.max_connections);
  }
  (void)vsock_transport->Restore(state.vsock_transport);
  (void)rng_transport->Restore(state.rng_transport);
  CHECK(line.Take() == 0);

  if (steps & kForgetDelivered) vsock.ForgetDelivered();
  if (steps & kResetOthers) vsock.ResetOthers(ConnectionId{1});
  serial.Kick();
  vsock_transport->Kick();
  rng_transport->Kick();
  // Bounds: a driver that never stops adding is not played here, so a device
  // that never comes to rest is a fault.
  for (int turns = 0;; ++turns) {
    bool idle = true;
    for (VirtioMmio* transport : {vsock_transport.get(), rng_transport.get()}) {
      for (uint16_t i = 0; i < transport->queue_count(); ++i) {
        if (transport->notifier(i).Drain() == 0) continue;
        transport->HandleNotify(i);
        idle = false;
      }
    }
    if (idle) break;
    CHECK(turns < 10'000);
  }
  // What a live device holds can be saved and restored again.
  CHECK(vsock.Restore(vsock.Save()).ok());
  CHECK(vsock_transport->Restore(vsock_transport->Save()).ok());
  CHECK(rng_transport->Restore(rng_transport->Save()).ok());
}

}  // namespace
}  // namespace forklet::fuzzing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  static const GuestMemory memory = testing::MakeMemory(fuzzing::kMemoryBytes);
  uint8_t* ram = memory.regions().front().host;
  std::memset(ram, 0, fuzzing::kMemoryBytes);

  fuzzing::FuzzInput input(data, size);
  const auto steps = input.Take<uint8_t>();
  std::vector<uint8_t> bytes;
  if (steps & fuzzing::kRawState) {
    const auto raw = input.TakeBytes(input.Take<uint16_t>());
    bytes.assign(raw.begin(), raw.end());
  } else {
    bytes = fuzzing::PatchedState(input);
  }
  StateReader in(bytes);
  DevicesState state;
  // Whether it is whole or not: the devices have to bear what was read so far.
  if (ReadState(in, state)) fuzzing::CheckRoundTrip(state);
  const auto contents = input.TakeBytes(fuzzing::kMemoryBytes);
  if (!contents.empty()) std::memcpy(ram, contents.data(), contents.size());
  fuzzing::Drive(memory, state, steps);
  return 0;
}
