// A guest's virtio-vsock driver, for tests, and a host that writes down what it
// is told.
#pragma once

#include <linux/virtio_vsock.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/mmio.h"
#include "devices/virtio/vsock.h"
#include "virtio_driver.h"

namespace forklet::testing {

class RecordingHost final : public VsockHost {
 public:
  bool OnConnect(uint32_t host_port) override {
    dialled.push_back(host_port);
    return accepted_ports == 0 || host_port == accepted_ports;
  }
  void OnOpened(ConnectionId id, uint32_t port) override { opened.emplace_back(id, port); }
  void OnData(ConnectionId id, std::vector<uint8_t> bytes) override {
    data[id].append(bytes.begin(), bytes.end());
  }
  void OnEnd(ConnectionId id) override { ended.push_back(id); }
  void OnSent(ConnectionId id, size_t bytes) override { sent[id] += bytes; }
  void OnClosed(ConnectionId id) override { closed.push_back(id); }

  uint32_t accepted_ports = 0;  // The one port that is accepted; 0: all are
  std::vector<uint32_t> dialled;
  std::vector<std::pair<ConnectionId, uint32_t>> opened;
  std::map<ConnectionId, std::string> data;
  std::vector<ConnectionId> ended;
  std::map<ConnectionId, size_t> sent;
  std::vector<ConnectionId> closed;
};

struct Packet {
  virtio_vsock_hdr header;
  std::string payload;
};

class VsockGuest {
 public:
  static constexpr uint16_t kRxQueueSize = 16;
  static constexpr uint16_t kQueueSize = 64;
  static constexpr uint32_t kRxBytes = 4096 + sizeof(virtio_vsock_hdr);
  static constexpr uint32_t kCid = 3;

  explicit VsockGuest(const VsockConfig& config = {})
      : device_(std::make_unique<VsockDevice>(config, host)),
        transport_(VirtioMmio::Create(*device_, memory_, line).value()) {}

  VsockDevice& device() { return *device_; }
  VirtioMmio& transport() { return *transport_; }
  MmioDriver& driver() { return driver_; }
  DriverQueue& rx() { return rx_; }
  DriverQueue& tx() { return tx_; }
  const GuestMemory& memory() const { return memory_; }

  // Resets the device and starts it, with `buffers` empty rx buffers.
  void Start(uint16_t buffers = kRxQueueSize) {
    const std::vector<uint8_t> zero(0x30000, 0);
    (void)memory_.Write({kRings}, zero);
    rx_ = DriverQueue(memory_, kRings, kRxQueueSize);
    tx_ = DriverQueue(memory_, kRings + 0x10000, kQueueSize);
    driver_.Negotiate();
    driver_.SetUpQueue(VsockDevice::kRxQueue, rx_.Setup());
    driver_.SetUpQueue(VsockDevice::kTxQueue, tx_.Setup());
    driver_.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
    next_rx_ = 0;
    in_rx_.clear();
    AddRxBuffers(buffers);
    Run();
  }

  void AddRxBuffers(uint16_t count) {
    for (uint16_t i = 0; i < count; ++i) {
      const uint64_t address = kRxData + (next_rx_++ % kRxQueueSize) * 0x2000;
      rx_.Add({{address, kRxBytes, true}});
      in_rx_.push_back(address);
    }
  }

  // Runs the device until it has nothing to do; false when it never ends.
  bool Run() {
    for (int turn = 0; turn < 10'000; ++turn) {
      bool idle = true;
      for (uint16_t i = 0; i < transport_->queue_count(); ++i) {
        if (transport_->notifier(i).Drain() == 0) continue;
        transport_->HandleNotify(i);
        idle = false;
      }
      if (idle) return true;
    }
    return false;
  }

  virtio_vsock_hdr Header(uint16_t op, VsockPorts ports) const {
    virtio_vsock_hdr header = {};
    header.src_cid = kCid;
    header.dst_cid = kVsockHostCid;
    header.src_port = ports.guest;
    header.dst_port = ports.host;
    header.type = VIRTIO_VSOCK_TYPE_STREAM;
    header.op = op;
    header.buf_alloc = 256 * 1024;
    return header;
  }

  // Sends one packet and lets the device work.
  void Transmit(const virtio_vsock_hdr& header, const std::string& payload = {}) {
    QueueTx(header, payload);
    transport_->HandleNotify(VsockDevice::kTxQueue);
    Run();
    while (tx_.TakeUsed()) {
    }
  }
  void Transmit(uint16_t op, VsockPorts ports, const std::string& payload = {}) {
    virtio_vsock_hdr header = Header(op, ports);
    header.len = static_cast<uint32_t>(payload.size());
    Transmit(header, payload);
  }
  void QueueTx(const virtio_vsock_hdr& header, const std::string& payload) {
    (void)memory_.WriteObject({kTxData}, header);
    (void)memory_.Write({kTxData + 0x1000}, Bytes(payload));
    const uint32_t length = static_cast<uint32_t>(payload.size());
    if (payload.empty()) {
      tx_.Add({{kTxData, sizeof header, false}});
    } else {
      tx_.Add({{kTxData, sizeof header, false}, {kTxData + 0x1000, length, false}});
    }
  }

  // The next packet from the host. Its buffer goes back when `refill` is set.
  std::optional<Packet> Receive(bool refill = true) {
    const auto used = rx_.TakeUsed();
    if (!used) return std::nullopt;
    const uint64_t address = in_rx_.front();
    in_rx_.pop_front();
    Packet packet = {};
    (void)memory_.ReadObject({address}, packet.header);
    packet.payload.resize(packet.header.len);
    (void)memory_.Read({address + sizeof packet.header},
                       {reinterpret_cast<uint8_t*>(packet.payload.data()), packet.payload.size()});
    // The used length is the packet's, or the packet is not one.
    if (used->len != sizeof packet.header + packet.header.len) packet.header.op = 0xffff;
    if (refill) AddRxBuffers(1);
    return packet;
  }
  std::optional<uint16_t> ReceiveOp() {
    const auto packet = Receive();
    if (!packet) return std::nullopt;
    return packet->header.op;
  }

  // A connection that the guest has dialled and the host accepted.
  ConnectionId Dial(VsockPorts ports) {
    Transmit(VIRTIO_VSOCK_OP_REQUEST, ports);
    (void)Receive();
    return host.opened.back().first;
  }

  static std::span<const uint8_t> Bytes(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }
  static std::vector<uint8_t> Vector(const std::string& text) { return {text.begin(), text.end()}; }

  CountingLine line;
  RecordingHost host;

 private:
  static constexpr uint64_t kRings = 0x10000;
  static constexpr uint64_t kTxData = 0x80000;
  static constexpr uint64_t kRxData = 0x200000;

  GuestMemory memory_ = MakeMemory();
  std::unique_ptr<VsockDevice> device_;
  std::unique_ptr<VirtioMmio> transport_;
  MmioDriver driver_{*transport_};
  DriverQueue rx_{memory_, kRings, kRxQueueSize};
  DriverQueue tx_{memory_, kRings + 0x10000, kQueueSize};
  uint64_t next_rx_ = 0;
  std::deque<uint64_t> in_rx_;  // Addresses of the buffers in the ring
};

}  // namespace forklet::testing
