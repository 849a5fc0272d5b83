#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "devices/virtio/vsock_packet.h"

namespace forklet {

// Names one connection for the life of its VM; never used twice.
enum class ConnectionId : uint64_t {};

// Everything that a snapshot must keep of a connection, besides the bytes that
// wait to be sent.
//
// The counters count payload bytes since the connection was opened and wrap at
// 32 bits, as they do in the packets (virtio 1.2 §5.10.6.3).
struct VsockConnectionState {
  enum class Phase : uint8_t {
    kConnecting,  // We asked; no RESPONSE yet
    kOpen,
  };

  ConnectionId id{};
  VsockPorts ports;
  Phase phase = Phase::kConnecting;

  // Packets that wait for a buffer in the rx queue.
  bool send_request = false;
  bool send_response = false;
  bool send_credit_update = false;
  bool send_shutdown = false;  // After all bytes

  bool shutdown_requested = false;  // By our side: it sends no more bytes
  uint32_t peer_shutdown = 0;       // VIRTIO_VSOCK_SHUTDOWN_* flags of the guest's side

  // Towards the guest: what it has room for.
  uint32_t sent = 0;
  uint32_t peer_buffer_bytes = 0;  // Its buf_alloc
  uint32_t peer_forwarded = 0;     // Its fwd_cnt
  // From the guest: what we have room for.
  uint32_t received = 0;
  uint32_t consumed = 0;           // Our fwd_cnt
  uint32_t reported_consumed = 0;  // Our fwd_cnt in the last packet that we sent

  bool operator==(const VsockConnectionState&) const = default;
};

// One vsock stream: its state and the credit arithmetic of both directions.
//
// Owner: VsockDevice. Thread: the device thread.
class VsockConnection {
 public:
  // `buffer_bytes` is what we advertise as buf_alloc.
  VsockConnection(ConnectionId id, VsockPorts ports, uint32_t buffer_bytes)
      : buffer_bytes_(buffer_bytes) {
    state_.id = id;
    state_.ports = ports;
  }

  // One that was saved, with the bytes that wait to be sent. The caller has
  // checked it.
  VsockConnection(const VsockConnectionState& state, uint32_t buffer_bytes,
                  std::vector<uint8_t> queued)
      : state_(state), buffer_bytes_(buffer_bytes) {
    Queue(std::move(queued));
  }

  VsockConnectionState& state() { return state_; }
  const VsockConnectionState& state() const { return state_; }

  // The guest's current credit: takes it from a packet's header.
  void UpdatePeerCredit(uint32_t buffer_bytes, uint32_t forwarded);
  // Bytes that the guest has room for.
  uint32_t peer_free() const;
  // Bytes that we have room for, exactly.
  uint32_t local_free() const { return buffer_bytes_ - held(); }
  // Bytes delivered to our side and not consumed yet.
  uint32_t held() const { return state_.received - state_.consumed; }

  void Receive(uint32_t bytes) { state_.received += bytes; }
  // More than is held counts as all of it.
  void Consume(size_t bytes);

  void Queue(std::vector<uint8_t> data);
  size_t queued_bytes() const { return queued_bytes_; }
  // A copy of the bytes that wait to be sent.
  std::vector<uint8_t> CopyQueued() const;
  // Drops the bytes that wait to be sent; returns how many there were.
  size_t DropQueued();

  // Whether there is a packet to send now.
  bool has_packet() const { return has_control() || sendable_bytes() > 0 || can_shutdown(); }
  bool has_control() const {
    return state_.send_request || state_.send_response || state_.send_credit_update;
  }
  // Bytes that may be sent now: queued and within the guest's credit.
  size_t sendable_bytes() const;
  bool can_shutdown() const {
    return state_.send_shutdown && queued_bytes_ == 0 &&
           state_.phase == VsockConnectionState::Phase::kOpen;
  }
  // The kind of the packet to send now, which counts as sent thereby. After
  // VIRTIO_VSOCK_OP_RW the caller takes the bytes with front and PopFront.
  uint16_t TakeOp();

  // The first queued bytes, as one range; empty when there are none.
  std::span<const uint8_t> front() const;
  void PopFront(size_t bytes);
  void CountSent(uint32_t bytes) { state_.sent += bytes; }
  // Our side's credit, as it goes into a packet.
  uint32_t buffer_bytes() const { return buffer_bytes_; }

  bool in_ready_list = false;  // VsockDevice's own mark

 private:
  VsockConnectionState state_;
  const uint32_t buffer_bytes_;
  std::deque<std::vector<uint8_t>> queue_;
  size_t front_offset_ = 0;  // Bytes of queue_.front() that are sent already
  size_t queued_bytes_ = 0;
};

}  // namespace forklet
