// virtio-vsock between a guest whose packets, rings and registers are the
// fuzzer's, and a host that calls every method at any time and checks what it is
// promised.
#include <map>
#include <memory>
#include <vector>

#include "../native/virtio_driver.h"
#include "devices/virtio/mmio.h"
#include "devices/virtio/vsock.h"
#include "fuzz_input.h"

namespace forklet::fuzzing {
namespace {

constexpr uint64_t kMemoryBytes = 0x20000;
constexpr uint64_t kRxRings = 0;
constexpr uint64_t kTxRings = 0x4000;
constexpr uint64_t kTxData = 0x8000;
constexpr uint64_t kRxData = 0x10000;
constexpr uint16_t kQueueSize = 16;
constexpr VsockConfig kConfig{.guest_cid = 3, .buffer_bytes = 4096, .max_connections = 8};

class CheckingHost final : public VsockHost {
 public:
  struct Stream {
    bool open = false;
    size_t held = 0;    // Delivered, not consumed
    size_t queued = 0;  // Given to Send, not sent
  };

  bool OnConnect(uint32_t host_port) override { return host_port != 0; }
  void OnOpened(ConnectionId id, uint32_t) override {
    Stream& stream = streams[id];
    CHECK(!stream.open);
    stream.open = true;
  }
  void OnData(ConnectionId id, std::vector<uint8_t> data) override {
    Stream& stream = Open(id);
    CHECK(!data.empty());
    stream.held += data.size();
    CHECK(stream.held <= kConfig.buffer_bytes);
  }
  void OnEnd(ConnectionId id) override { Open(id); }
  void OnSent(ConnectionId id, size_t bytes) override {
    Stream& stream = Open(id);
    CHECK(bytes <= stream.queued);
    stream.queued -= bytes;
  }
  void OnClosed(ConnectionId id) override { CHECK(streams.erase(id) == 1); }

  std::map<ConnectionId, Stream> streams;

 private:
  Stream& Open(ConnectionId id) {
    const auto found = streams.find(id);
    CHECK(found != streams.end() && found->second.open);
    return found->second;
  }
};

class Machine {
 public:
  explicit Machine(const GuestMemory& memory)
      : memory_(memory),
        device_(kConfig, host_),
        transport_(VirtioMmio::Create(device_, memory, line_).value()) {
    Start();
  }

  void Step(FuzzInput& input) {
    switch (input.Take<uint8_t>() % 10) {
      case 0:
        return Start();
      case 1: {
        const GuestAddress address{input.Take<uint16_t>()};
        (void)memory_.Write(address, input.TakeBytes(input.Take<uint8_t>()));
        return;
      }
      case 2:
        return driver_.Write(input.Take<uint8_t>() & 0xfcu, input.Take<uint32_t>());
      case 3:
      case 4:
        return Transmit(input);
      case 5: {
        const uint16_t length = input.Take<uint16_t>();
        rx_.Add({{kRxData, length, true}});
        return;
      }
      case 6:
        return HostCall(input);
      default:
        return Turn(input.Take<uint8_t>() % transport_->queue_count());
    }
  }

  void Finish() {
    // Nothing may keep the device busy for ever.
    for (int turns = 0;; ++turns) {
      bool idle = true;
      for (uint16_t i = 0; i < transport_->queue_count(); ++i) {
        if (transport_->notifier(i).Drain() == 0) continue;
        Turn(i);
        idle = false;
      }
      if (idle) break;
      CHECK(turns < 10'000);
    }
    CHECK(device_.connection_count() <= kConfig.max_connections);
    CHECK(device_.connection_count() == host_.streams.size());
  }

 private:
  void Start() {
    rx_ = testing::DriverQueue(memory_, kRxRings, kQueueSize);
    tx_ = testing::DriverQueue(memory_, kTxRings, kQueueSize);
    std::memset(memory_.regions().front().host, 0, kTxData);
    driver_.Negotiate();
    driver_.SetUpQueue(VsockDevice::kRxQueue, rx_.Setup());
    driver_.SetUpQueue(VsockDevice::kTxQueue, tx_.Setup());
    driver_.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
  }

  void Turn(uint16_t queue) { transport_->HandleNotify(queue); }

  // A packet with plausible addresses, so that it gets past the first checks.
  void Transmit(FuzzInput& input) {
    virtio_vsock_hdr header = {};
    header.src_cid = kConfig.guest_cid;
    header.dst_cid = kVsockHostCid;
    header.src_port = input.Take<uint8_t>() % 8;
    header.dst_port = input.Take<uint8_t>() % 8;
    if (header.dst_port > 4) header.dst_port += 1020;  // Ports of dialled connections
    header.type = VIRTIO_VSOCK_TYPE_STREAM;
    header.op = input.Take<uint8_t>() % 9;
    header.flags = input.Take<uint8_t>() % 4;
    header.buf_alloc = input.Take<uint32_t>();
    header.fwd_cnt = input.Take<uint16_t>();
    const uint16_t payload = input.Take<uint16_t>() % 6000;
    header.len = payload + (input.Take<uint8_t>() == 0 ? 1 : 0);
    (void)memory_.WriteObject({kTxData}, header);
    tx_.Add({{kTxData, sizeof header, false}, {kTxData + 0x100, payload, false}});
    Turn(VsockDevice::kTxQueue);
  }

  void HostCall(FuzzInput& input) {
    const uint8_t call = input.Take<uint8_t>() % 6;
    if (call == 0) {
      if (const auto id = device_.Connect(input.Take<uint8_t>() % 8)) host_.streams[*id] = {};
      return;
    }
    if (host_.streams.empty()) return;
    auto stream = host_.streams.begin();
    std::advance(stream, input.Take<uint8_t>() % host_.streams.size());
    const ConnectionId id = stream->first;
    switch (call) {
      case 1: {
        const std::vector<uint8_t> data(input.Take<uint16_t>());
        if (device_.Send(id, data)) stream->second.queued += data.size();
        return;
      }
      case 2: {
        const size_t bytes = input.Take<uint16_t>();
        device_.Consume(id, bytes);
        stream->second.held -= std::min(bytes, stream->second.held);
        return;
      }
      case 3:
        return device_.Shutdown(id);
      case 4:
        device_.Reset(id);
        host_.streams.erase(id);
        return;
      case 5:
        device_.ResetOthers(id);
        std::erase_if(host_.streams, [id](const auto& entry) { return entry.first != id; });
        return;
    }
  }

  const GuestMemory& memory_;
  testing::CountingLine line_;
  CheckingHost host_;
  VsockDevice device_;
  std::unique_ptr<VirtioMmio> transport_;
  testing::MmioDriver driver_{*transport_};
  testing::DriverQueue rx_{memory_, kRxRings, kQueueSize};
  testing::DriverQueue tx_{memory_, kTxRings, kQueueSize};
};

}  // namespace
}  // namespace forklet::fuzzing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace forklet;
  static const GuestMemory memory = testing::MakeMemory(fuzzing::kMemoryBytes);
  fuzzing::FuzzInput input(data, size);
  fuzzing::Machine machine(memory);
  while (!input.empty()) machine.Step(input);
  machine.Finish();
  return 0;
}
