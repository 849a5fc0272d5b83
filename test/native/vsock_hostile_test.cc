// What a guest that breaks the rules of virtio-vsock gets: its connection reset
// or its packet dropped, and nothing else harmed.
#include <string>
#include <vector>

#include "devices/virtio/vsock.h"
#include "vsock_guest.h"

#include "doctest.h"

namespace forklet {
namespace {

using testing::VsockGuest;

constexpr VsockPorts kPorts{.host = 1, .guest = 5000};
constexpr VsockPorts kOther{.host = 1, .guest = 5001};

struct Fixture : VsockGuest {
  Fixture() : Fixture(VsockConfig{.buffer_bytes = 1024, .max_connections = 4}) {}
  explicit Fixture(const VsockConfig& config) : VsockGuest(config) {
    Start();
    id = Dial(kPorts);
    other = Dial(kOther);
  }

  // Whether the connection on kPorts was reset, and the other one lives on.
  bool OnlyThatConnectionIsGone() {
    const bool reset = ReceiveOp() == VIRTIO_VSOCK_OP_RST && host.closed == std::vector{id} &&
                       device().counters().violations == 1;
    Transmit(VIRTIO_VSOCK_OP_RW, kOther, "fine");
    return reset && host.data[other] == "fine" && device().connection_count() == 1;
  }

  ConnectionId id{};
  ConnectionId other{};
};

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection that exceeds its credit") {
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(1024, 'x'));
  CHECK(host.closed.empty());
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "y");
  CHECK_EQ(host.data[id].size(), 1024);
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection whose packet says more than it has") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
  header.len = 11;
  Transmit(header, std::string(10, 'x'));
  CHECK(host.data[id].empty());
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection whose length is absurd") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
  header.len = 0xffffffff;
  Transmit(header, std::string(10, 'x'));
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice takes only the stated length of a longer packet") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
  header.len = 3;
  Transmit(header, "abcdef");
  CHECK_EQ(host.data[id], "abc");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice ignores a packet of data without data") {
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts);
  CHECK(host.data.empty());
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection whose control packet has a payload") {
  Transmit(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kPorts, "boo");
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection that is requested twice") {
  Transmit(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection on a response that nobody asked for") {
  Transmit(VIRTIO_VSOCK_OP_RESPONSE, kPorts);
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection on an unknown operation") {
  Transmit(0x1234, kPorts);
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection that sends after its own end") {
  virtio_vsock_hdr shutdown = Header(VIRTIO_VSOCK_OP_SHUTDOWN, kPorts);
  shutdown.flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
  Transmit(shutdown);
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "ghost");
  CHECK(host.data[id].empty());
  CHECK(OnlyThatConnectionIsGone());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a dialled connection that sends before it answers") {
  const auto dialled = device().Connect(22);
  Run();
  const VsockPorts ports{.host = Receive()->header.src_port, .guest = 22};
  Transmit(VIRTIO_VSOCK_OP_RW, ports, "eager");
  CHECK_EQ(host.closed, std::vector{*dialled});
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice believes no answer to a request that has not left") {
  const auto dialled = device().Connect(22);
  // The first port that is given out; the request still waits in the device.
  QueueTx(Header(VIRTIO_VSOCK_OP_RESPONSE, {.host = 1024, .guest = 22}), {});
  transport().HandleNotify(VsockDevice::kTxQueue);
  CHECK_EQ(host.opened.size(), 2);
  CHECK_EQ(host.closed, std::vector{*dialled});
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice answers packets for no connection with a reset") {
  for (uint16_t op : {VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_OP_RESPONSE,
                      VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_CREDIT_REQUEST}) {
    Transmit(op, {.host = 9, .guest = 9});
    const auto packet = Receive();
    REQUIRE(packet);
    CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RST);
    CHECK_EQ(packet->header.dst_port, 9);
  }
  CHECK_EQ(device().counters().dropped_packets, 5);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice never answers a reset") {
  Transmit(VIRTIO_VSOCK_OP_RST, {.host = 9, .guest = 9});
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice drops packets from or to a foreign CID unanswered") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_REQUEST, {.host = 7, .guest = 7});
  for (uint64_t cid : {uint64_t{0}, uint64_t{2}, uint64_t{4}, uint64_t{3} << 32 | 3}) {
    header.src_cid = cid;
    Transmit(header);
  }
  header.src_cid = kCid;
  for (uint64_t cid : {uint64_t{0}, uint64_t{1}, uint64_t{3}, ~uint64_t{0}}) {
    header.dst_cid = cid;
    Transmit(header);
  }
  CHECK_FALSE(Receive());
  CHECK_EQ(host.opened.size(), 2);
  CHECK_EQ(device().counters().dropped_packets, 8);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice refuses socket types other than stream") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  header.type = VIRTIO_VSOCK_TYPE_SEQPACKET;
  Transmit(header);
  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(packet->header.type, VIRTIO_VSOCK_TYPE_SEQPACKET);
  // The stream on the same ports is another connection, and stays.
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice drops packets too short for a header") {
  for (uint32_t length : {0u, 1u, 43u}) {
    tx().Add({{0x80000, length, false}});
    transport().HandleNotify(VsockDevice::kTxQueue);
    CHECK(tx().TakeUsed());
  }
  // Writable buffers are none that a packet could be in.
  tx().Add({{0x80000, 4096, true}});
  transport().HandleNotify(VsockDevice::kTxQueue);
  CHECK(tx().TakeUsed());
  CHECK_EQ(device().counters().dropped_packets, 4);
  CHECK_EQ(driver().status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice gathers a header that is scattered over buffers") {
  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
  header.len = 4;
  std::vector<uint8_t> bytes(reinterpret_cast<uint8_t*>(&header),
                             reinterpret_cast<uint8_t*>(&header) + sizeof header);
  bytes.insert(bytes.end(), {'a', 'b', 'c', 'd'});
  std::vector<testing::Buffer> buffers;
  REQUIRE(memory().Write({0x90000}, bytes));
  for (size_t i = 0; i < bytes.size(); i += 3) {
    buffers.push_back(
        {0x90000 + i, static_cast<uint32_t>(std::min<size_t>(3, bytes.size() - i)), false});
  }
  tx().Add(buffers);
  transport().HandleNotify(VsockDevice::kTxQueue);
  CHECK_EQ(host.data[id], "abcd");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice refuses connections beyond its maximum") {
  Dial({.host = 1, .guest = 1});
  Dial({.host = 1, .guest = 2});
  CHECK_EQ(device().connection_count(), 4);
  Transmit(VIRTIO_VSOCK_OP_REQUEST, {.host = 1, .guest = 3});
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(device().connection_count(), 4);
  CHECK_FALSE(device().Connect(22));
  // One that ends makes room.
  Transmit(VIRTIO_VSOCK_OP_RST, kPorts);
  CHECK(device().Connect(22));
}

TEST_CASE("VsockDevice bounds the replies that a guest without rx buffers makes it hold") {
  VsockGuest guest;
  guest.Start(0);
  for (uint32_t i = 0; i < 5000; ++i) {
    guest.Transmit(VIRTIO_VSOCK_OP_RW, {.host = 9, .guest = i});
  }
  CHECK_EQ(guest.device().counters().dropped_resets, 5000 - VsockDevice::kMaxPendingResets);
  // And connections that open and break, likewise.
  for (uint32_t i = 0; i < 5000; ++i) {
    guest.Transmit(VIRTIO_VSOCK_OP_REQUEST, {.host = 1, .guest = i});
    guest.Transmit(VIRTIO_VSOCK_OP_REQUEST, {.host = 1, .guest = i});
  }
  CHECK_EQ(guest.device().connection_count(), 0);
  CHECK_EQ(guest.device().counters().violations, 5000);
  CHECK_EQ(guest.host.closed.size(), 5000);

  size_t resets = 0;
  for (int round = 0; round < 200; ++round) {
    guest.AddRxBuffers(16);
    guest.transport().HandleNotify(VsockDevice::kRxQueue);
    guest.Run();
    while (guest.Receive(false)) ++resets;
  }
  CHECK_EQ(resets, VsockDevice::kMaxPendingResets);
}

TEST_CASE("VsockDevice returns rx buffers that are too small for a packet") {
  VsockGuest guest;
  guest.Start(0);
  for (uint32_t length : {0u, 43u, 44u}) guest.rx().Add({{0x200000, length, true}});
  guest.rx().Add({{0x200000, 4096, false}});
  guest.AddRxBuffers(1);
  guest.Transmit(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  for (int i = 0; i < 4; ++i) CHECK_EQ(guest.rx().TakeUsed()->len, 0);
  CHECK_EQ(guest.Receive(false)->header.op, VIRTIO_VSOCK_OP_RESPONSE);
  CHECK_EQ(guest.device().counters().dropped_buffers, 4);
}

TEST_CASE("VsockDevice bounds one packet, however large the buffer and the credit") {
  VsockGuest guest;
  guest.Start(0);
  virtio_vsock_hdr request = guest.Header(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  request.buf_alloc = 0xffffffff;
  guest.Transmit(request);
  const ConnectionId id = guest.host.opened.back().first;
  REQUIRE(guest.device().Send(id, std::vector<uint8_t>(1 << 20, 'z')));
  guest.Run();
  guest.rx().Add({{0x200000, 0x200000, true}});
  guest.rx().Add({{0x200000, 0x200000, true}});
  guest.transport().HandleNotify(VsockDevice::kRxQueue);
  CHECK_EQ(guest.rx().TakeUsed()->len, 44);
  CHECK_EQ(guest.rx().TakeUsed()->len, 44 + 65536);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice bounds a turn and comes back for the rest") {
  for (int i = 0; i < 60; ++i) QueueTx(Header(VIRTIO_VSOCK_OP_RW, kPorts), {});
  CHECK_EQ(transport().HandleNotify(VsockDevice::kTxQueue), Turn::kIdle);
  for (int i = 0; i < 60; ++i) CHECK(tx().TakeUsed());

  virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
  const std::string large(0x20000, 'x');
  for (int i = 0; i < 3; ++i) QueueTx(header, large);
  CHECK_EQ(transport().HandleNotify(VsockDevice::kTxQueue), Turn::kMoreWork);
  CHECK(tx().TakeUsed());
  CHECK(tx().TakeUsed());
  CHECK_FALSE(tx().TakeUsed());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice serves a guest that never stops sending") {
  REQUIRE(device().Send(id, Vector("x")));
  for (int i = 0; i < kQueueSize; ++i) {
    tx().Add({{0x80000, 0, false}});
  }
  CHECK_EQ(transport().HandleNotify(VsockDevice::kTxQueue), Turn::kMoreWork);
  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->payload, "x");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice stops when either of its queues breaks") {
  rx().SetAvailableIndex(static_cast<uint16_t>(rx().available_index() + 1000));
  device().Send(id, Vector("x"));
  Run();
  CHECK_NE(driver().status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
  CHECK_EQ(host.sent[id], 0);
  // The host's calls go nowhere, until a reset closes the connections.
  CHECK(device().Send(id, Vector("y")));
  CHECK(Run());
  Start();
  CHECK_EQ(host.closed.size(), 2);
  CHECK_EQ(driver().status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

}  // namespace
}  // namespace forklet
