#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "devices/virtio/device.h"
#include "devices/virtio/vsock_connection.h"
#include "devices/virtio/vsock_packet.h"

namespace forklet {

// The host's side of a VM's vsock: told by VsockDevice what the guest does.
//
// Thread: the device thread, inside a turn of the device and so with its lock
// held: an implementation must not wait for a vCPU. It may call any method of
// VsockDevice (none calls back by itself), except Connect from OnConnect.
class VsockHost {
 public:
  virtual ~VsockHost() = default;

  // The guest dials a port of the host. True accepts: OnOpened follows.
  virtual bool OnConnect(uint32_t host_port) = 0;
  // A connection is open: one that OnConnect accepted, or that Connect asked
  // for. `port` is the host's in the first case, the guest's in the second.
  virtual void OnOpened(ConnectionId id, uint32_t port) = 0;
  // The guest sent bytes, never none. They count against its credit until
  // Consume.
  virtual void OnData(ConnectionId id, std::vector<uint8_t> data) = 0;
  // The guest will send no more; it may still read.
  virtual void OnEnd(ConnectionId id) = 0;
  // So many more of the bytes given to Send are in the guest's queue, or were
  // dropped because the guest stopped reading.
  virtual void OnSent(ConnectionId id, size_t bytes) = 0;
  // The connection is gone, or the guest refused it: nothing more comes for
  // this id. Follows neither Reset nor ResetOthers of our own side.
  virtual void OnClosed(ConnectionId id) = 0;
};

struct VsockConfig {
  uint64_t guest_cid = 3;
  // Most unconsumed bytes of one connection that this side holds (buf_alloc).
  uint32_t buffer_bytes = 256 * 1024;
  uint32_t max_connections = 1024;
};

// virtio-vsock (virtio 1.2 §5.10), stream sockets only.
//
// Credit flows both ways: no byte is sent that the guest has no room for, and a
// guest that sends more than it was told there is room for loses the connection.
// Every packet costs the guest thousands of instructions, so a packet takes as
// many bytes as the guest's buffer has room for, acknowledgements ride on other
// packets where they can, and all packets of one turn share one interrupt.
//
// What a guest can make this object hold is bounded: per connection that the
// host agreed to, buffer_bytes; besides, kMaxPendingResets short records.
//
// Owner: the VM. Thread: the device thread (see VirtioDevice).
class VsockDevice final : public VirtioDevice {
 public:
  static constexpr uint16_t kRxQueue = 0;  // Device to guest
  static constexpr uint16_t kTxQueue = 1;  // Guest to device
  static constexpr uint16_t kEventQueue = 2;
  static constexpr size_t kMaxPendingResets = 2048;

  // What the guest did wrong, and what it lost by that.
  struct Counters {
    uint64_t dropped_packets = 0;  // Malformed, foreign CID, or for no connection
    uint64_t dropped_buffers = 0;  // Rx buffers too small for a packet
    uint64_t dropped_resets = 0;   // Replies that had no room to wait
    uint64_t violations = 0;       // Connections reset for breaking the protocol
  };

  // A packet of refusal that waits for an rx buffer.
  struct PendingReset {
    VsockPorts ports;
    uint16_t type;

    bool operator==(const PendingReset&) const = default;
  };

  // Bounds on what a saved state may hold of bytes that wait to be sent. A live
  // device has none of its own: see Send.
  static constexpr size_t kMaxSavedBytes = 1024 * 1024;  // A connection
  static constexpr size_t kMaxSavedBytesInAll = 64 * 1024 * 1024;

  // Everything that a snapshot must keep.
  struct State {
    struct Connection {
      VsockConnectionState state;
      std::vector<uint8_t> queued;

      bool operator==(const Connection&) const = default;
    };

    std::vector<Connection> connections;  // By id, ascending
    std::vector<ConnectionId> ready;      // In line for rx buffers
    std::vector<PendingReset> resets;     // In line before them
    uint64_t next_id = 1;
    uint32_t next_host_port = kVsockFirstHostPort;

    bool operator==(const State&) const = default;
  };

  // `host` outlives this object.
  VsockDevice(const VsockConfig& config, VsockHost& host);

  // Dials a port of the guest. OnOpened or OnClosed follows, whenever the guest
  // answers: a deadline is the caller's business. Nothing when there are
  // max_connections already.
  std::optional<ConnectionId> Connect(uint32_t guest_port);
  // Queues bytes for the guest. False when there is no such connection (any
  // more), or it was shut down: the bytes are dropped. There is no bound but the
  // caller's: OnSent tells when bytes have left.
  bool Send(ConnectionId id, std::vector<uint8_t> data);
  // Gives the guest its credit back for so many bytes of OnData; more than was
  // delivered counts as all of it.
  void Consume(ConnectionId id, size_t bytes);
  // Sends no more than what is queued, and says so to the guest, which may go
  // on sending.
  void Shutdown(ConnectionId id);
  // Ends the connection at once; bytes that were not sent are dropped.
  void Reset(ConnectionId id);
  // Ends all connections but one.
  void ResetOthers(ConnectionId keep);
  // Gives the guest its credit back for all that was delivered. For a restored
  // device, whose host has nothing of what was delivered before: does not wake
  // the device thread, since the transport's Kick follows.
  void ForgetDelivered();

  State Save() const;
  // Takes over a saved state, which may come from a file, and forgets the one
  // before; VsockHost is told nothing. kBadSnapshot, and nothing changed, when no
  // guest could have brought the device into it. Nothing moves before the
  // transport's Kick.
  Status Restore(const State& state);

  // Whether something waits to be sent to the guest.
  bool has_output() const { return !resets_.empty() || !ready_.empty(); }
  size_t connection_count() const { return connections_.size(); }
  const Counters& counters() const { return counters_; }

  uint32_t type() const override;
  std::span<const uint16_t> queue_sizes() const override;
  void ReadConfig(uint64_t offset, std::span<uint8_t> data) const override;
  Turn ProcessQueue(uint16_t index) override;
  void HandleReset() override;

 private:
  // What is wrong with a saved state; null when nothing is.
  const char* FindFault(const State& state) const;
  const char* FindFault(const State::Connection& saved) const;

  // Guest to host (vsock_tx.cc).
  Turn ProcessTx();
  void HandlePacket();
  void HandleRequest(VsockPorts ports, const virtio_vsock_hdr& header);
  void HandleOpenPacket(VsockConnection& connection, const virtio_vsock_hdr& header);
  void HandleData(VsockConnection& connection, uint32_t bytes);
  void HandleShutdown(VsockConnection& connection, uint32_t flags);
  // Ends a connection whose guest broke the protocol.
  void Violation(VsockConnection& connection);

  // Host to guest (vsock_rx.cc).
  Turn ProcessRx();
  bool HasPacket();
  // Sends the next packet in the buffer chain_.
  void SendPacket(TurnBudget& budget);
  // Copies what may be sent behind the header in chain_; returns the bytes.
  uint32_t CopyQueued(VsockConnection& connection);
  void FinishPacket(const virtio_vsock_hdr& header, TurnBudget& budget);
  void ReplyReset(VsockPorts ports, uint16_t type);

  VsockConnection* Find(ConnectionId id);
  VsockConnection* Find(VsockPorts ports);
  VsockConnection& Add(VsockPorts ports);
  // Ids of all connections, ascending: nothing that forks see depends on hashes.
  std::vector<ConnectionId> Ids() const;
  void Remove(VsockConnection& connection);
  uint32_t AllocateHostPort(uint32_t guest_port);
  // Puts the connection in line for rx buffers if it has a packet to send; true
  // when it was not in line before.
  bool Enlist(VsockConnection& connection);
  // Enlists it, and has the device thread look if that is news.
  void Schedule(VsockConnection& connection);
  // Ends a connection and tells the host, but not the guest.
  void Close(VsockConnection& connection);
  // Has the device thread look at the rx queue, unless it is about to anyway.
  void WakeRx();

  const VsockConfig config_;
  const virtio_vsock_config config_space_;
  VsockHost& host_;
  std::unordered_map<ConnectionId, std::unique_ptr<VsockConnection>> connections_;
  std::unordered_map<uint64_t, ConnectionId> by_ports_;  // Key: VsockPorts::key
  std::deque<ConnectionId> ready_;                       // In line for rx buffers
  std::deque<PendingReset> resets_;                      // RSTs that wait for rx buffers
  uint64_t next_id_ = 1;
  uint32_t next_host_port_ = kVsockFirstHostPort;
  bool in_turn_ = false;       // The turn ends with a look at the rx queue
  bool wake_pending_ = false;  // So does the one that was asked for
  DescriptorChain chain_;      // The packet in hand
  Counters counters_;
};

}  // namespace forklet
