#include "devices/virtio/vsock.h"

#include <linux/virtio_ids.h>

#include <string>
#include <vector>

#include "vsock_guest.h"

#include "doctest.h"

namespace forklet {
namespace {

using testing::VsockGuest;

constexpr VsockPorts kPorts{.host = 1, .guest = 5000};
constexpr uint32_t kBothShutdown = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

struct Fixture : VsockGuest {
  Fixture() { Start(); }
  explicit Fixture(const VsockConfig& config) : VsockGuest(config) { Start(); }

  bool Send(ConnectionId id, const std::string& text) {
    const bool sent = device().Send(id, Vector(text));
    Run();
    return sent;
  }
  // All payload that has arrived, with the buffers given back.
  std::string ReceiveAll() {
    std::string text;
    while (const auto packet = Receive()) {
      if (packet->header.op == VIRTIO_VSOCK_OP_RW) text += packet->payload;
    }
    return text;
  }
};

struct SmallBuffer : Fixture {
  SmallBuffer() : Fixture(VsockConfig{.buffer_bytes = 1024, .max_connections = 4}) {}
};

TEST_CASE_FIXTURE(Fixture, "VsockDevice tells the guest its CID") {
  CHECK_EQ(driver().Read(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_VSOCK);
  CHECK_EQ(driver().Read(VIRTIO_MMIO_CONFIG), kCid);
  CHECK_EQ(driver().Read(VIRTIO_MMIO_CONFIG + 4), 0);
  CHECK_EQ(driver().Read(VIRTIO_MMIO_CONFIG + 8), 0);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice accepts the port that the host accepts") {
  host.accepted_ports = 1;
  Transmit(VIRTIO_VSOCK_OP_REQUEST, kPorts);

  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RESPONSE);
  CHECK_EQ(packet->header.src_cid, kVsockHostCid);
  CHECK_EQ(packet->header.dst_cid, kCid);
  CHECK_EQ(packet->header.src_port, kPorts.host);
  CHECK_EQ(packet->header.dst_port, kPorts.guest);
  CHECK_EQ(packet->header.buf_alloc, 256 * 1024);
  REQUIRE_EQ(host.opened.size(), 1);
  CHECK_EQ(host.opened[0].second, 1);
  CHECK_EQ(device().connection_count(), 1);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection to a port that the host refuses") {
  host.accepted_ports = 1;
  Transmit(VIRTIO_VSOCK_OP_REQUEST, {.host = 2, .guest = 5000});

  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(packet->header.src_port, 2);
  CHECK_EQ(packet->header.dst_port, 5000);
  CHECK(host.opened.empty());
  CHECK_EQ(device().connection_count(), 0);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice carries bytes both ways") {
  const ConnectionId id = Dial(kPorts);
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "hello host");
  CHECK_EQ(host.data[id], "hello host");

  CHECK(Send(id, "hello guest"));
  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RW);
  CHECK_EQ(packet->payload, "hello guest");
  CHECK_EQ(host.sent[id], 11);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice packs several sends into one packet and one interrupt") {
  const ConnectionId id = Dial(kPorts);
  line.Take();
  rx().SetUsedEvent(rx().last_used());
  std::string expected;
  for (int i = 0; i < 100; ++i) {
    const std::string piece(i + 1, static_cast<char>('a' + i % 26));
    CHECK(device().Send(id, Vector(piece)));
    expected += piece;
  }
  Run();

  CHECK_EQ(line.Take(), 1);
  const auto first = Receive();
  const auto second = Receive();
  REQUIRE(second);
  CHECK_EQ(first->payload.size(), 4096);
  CHECK_EQ(first->payload + second->payload, expected);
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice dials the guest and sends once it answers") {
  const auto id = device().Connect(22);
  REQUIRE(id);
  CHECK(device().Send(*id, Vector("early")));
  Run();
  const auto request = Receive();
  REQUIRE(request);
  CHECK_EQ(request->header.op, VIRTIO_VSOCK_OP_REQUEST);
  CHECK_EQ(request->header.dst_port, 22);
  CHECK_FALSE(Receive());

  Transmit(VIRTIO_VSOCK_OP_RESPONSE, {.host = request->header.src_port, .guest = 22});

  CHECK_EQ(host.opened, std::vector{std::pair{*id, uint32_t{22}}});
  CHECK_EQ(ReceiveAll(), "early");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice reports a closed connection when the guest refuses") {
  const auto id = device().Connect(22);
  Run();
  const uint32_t port = Receive()->header.src_port;
  Transmit(VIRTIO_VSOCK_OP_RST, {.host = port, .guest = 22});
  CHECK(host.opened.empty());
  CHECK_EQ(host.closed, std::vector{*id});
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice gives each dialled connection a port of its own") {
  const auto first = device().Connect(22);
  const auto second = device().Connect(22);
  CHECK_NE(*first, *second);
  Run();
  CHECK_NE(Receive()->header.src_port, Receive()->header.src_port);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice sends no more than the guest's credit") {
  virtio_vsock_hdr request = Header(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  request.buf_alloc = 100;
  Transmit(request);
  Receive();
  const ConnectionId id = host.opened.back().first;

  Send(id, std::string(250, 'x'));
  CHECK_EQ(ReceiveAll().size(), 100);
  CHECK_EQ(host.sent[id], 100);

  virtio_vsock_hdr update = Header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kPorts);
  update.buf_alloc = 100;
  update.fwd_cnt = 60;
  Transmit(update);
  CHECK_EQ(ReceiveAll().size(), 60);

  // Less room than there is in flight is no room, and no error.
  update.buf_alloc = 10;
  Transmit(update);
  CHECK_EQ(ReceiveAll().size(), 0);
  update.buf_alloc = 1000;
  update.fwd_cnt = 160;
  Transmit(update);
  CHECK_EQ(ReceiveAll().size(), 90);
  CHECK_EQ(host.sent[id], 250);
}

TEST_CASE_FIXTURE(Fixture,
                  "VsockDevice gives nothing to a guest that forwarded what was not sent") {
  const ConnectionId id = Dial(kPorts);
  virtio_vsock_hdr update = Header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kPorts);
  update.fwd_cnt = 1;
  Transmit(update);
  Send(id, "x");
  CHECK_EQ(ReceiveAll(), "");
  update.fwd_cnt = 0;
  Transmit(update);
  CHECK_EQ(ReceiveAll(), "x");
}

TEST_CASE("VsockConnection keeps its credit while the counters wrap at 32 bits") {
  VsockConnection connection(ConnectionId{1}, kPorts, 1024);
  connection.state().phase = VsockConnectionState::Phase::kOpen;
  connection.state().sent = 0xfffffff0;
  connection.UpdatePeerCredit(100, 0xfffffff0);
  connection.Queue(std::vector<uint8_t>(200));
  CHECK_EQ(connection.sendable_bytes(), 100);
  connection.CountSent(100);
  CHECK_EQ(connection.sendable_bytes(), 0);
  connection.UpdatePeerCredit(100, 0x10);
  CHECK_EQ(connection.sendable_bytes(), 32);

  connection.state().received = connection.state().consumed = 0xfffffff0;
  connection.state().reported_consumed = 0xfffffff0;
  connection.Receive(1000);
  CHECK_EQ(connection.local_free(), 24);
  connection.Consume(1000);
  CHECK_EQ(connection.local_free(), 1024);
  CHECK(connection.state().send_credit_update);
}

TEST_CASE_FIXTURE(SmallBuffer, "VsockDevice tells the guest of new room only when it is worth it") {
  const ConnectionId id = Dial(kPorts);
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(500, 'x'));
  device().Consume(id, 500);
  Run();
  CHECK_FALSE(Receive());

  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(500, 'x'));
  device().Consume(id, 500);
  Run();
  const auto update = Receive();
  REQUIRE(update);
  CHECK_EQ(update->header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  CHECK_EQ(update->header.fwd_cnt, 1000);
  CHECK_EQ(update->header.buf_alloc, 1024);
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(SmallBuffer, "VsockDevice lets no guest starve, however slowly it is consumed") {
  const ConnectionId id = Dial(kPorts);
  uint32_t sent = 0;
  uint32_t room = 1024;
  uint32_t forwarded = 0;
  for (int round = 0; round < 1000; ++round) {
    if (const uint32_t free = room - (sent - forwarded); free > 0) {
      Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(free, 'x'));
      sent += free;
    }
    device().Consume(id, 7);
    Run();
    while (const auto packet = Receive()) forwarded = packet->header.fwd_cnt;
  }
  CHECK_EQ(host.data[id].size(), sent);
  CHECK_GT(sent, 6500);
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice answers a credit request at once") {
  Dial(kPorts);
  Transmit(VIRTIO_VSOCK_OP_CREDIT_REQUEST, kPorts);
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice lets its credit ride on data") {
  const ConnectionId id = Dial(kPorts);
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "12345");
  device().Consume(id, 5);
  Send(id, "x");
  CHECK_EQ(Receive()->header.fwd_cnt, 5);
  CHECK_FALSE(Receive());
}

TEST_CASE("VsockDevice goes on when the guest adds buffers to a full rx queue") {
  VsockGuest guest;
  guest.Start(2);
  guest.Transmit(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  const ConnectionId id = guest.host.opened.back().first;
  REQUIRE(guest.device().Send(id, std::vector<uint8_t>(3 * 4096, 'y')));
  guest.Run();
  CHECK_EQ(guest.Receive(false)->header.op, VIRTIO_VSOCK_OP_RESPONSE);
  CHECK_EQ(guest.Receive(false)->payload.size(), 4096);
  CHECK_FALSE(guest.Receive(false));

  // Only now does the device want to hear of new buffers.
  const uint16_t before = guest.rx().available_index();
  guest.AddRxBuffers(4);
  CHECK(guest.rx().WouldNotify(before));
  guest.transport().HandleNotify(VsockDevice::kRxQueue);
  CHECK_EQ(guest.Receive(false)->payload.size(), 4096);
  CHECK_EQ(guest.Receive(false)->payload.size(), 4096);
  CHECK_EQ(guest.host.sent[id], 3 * 4096);

  const uint16_t later = guest.rx().available_index();
  guest.AddRxBuffers(4);
  CHECK_FALSE(guest.rx().WouldNotify(later));
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice lets connections take turns") {
  const ConnectionId first = Dial({.host = 1, .guest = 1});
  const ConnectionId second = Dial({.host = 1, .guest = 2});
  device().Send(first, std::vector<uint8_t>(5 * 4096));
  device().Send(second, std::vector<uint8_t>(5 * 4096));
  Run();
  for (int i = 0; i < 5; ++i) {
    CHECK_EQ(Receive()->header.dst_port, 1);
    CHECK_EQ(Receive()->header.dst_port, 2);
  }
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice moves megabytes both ways unharmed") {
  const ConnectionId id = Dial(kPorts);
  std::string text(3'000'017, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 3);
  uint32_t forwarded = 0;
  std::string received;
  device().Send(id, Vector(text));
  for (size_t offset = 0; offset < text.size() || received.size() < text.size();) {
    const size_t count = std::min<size_t>(60'000, text.size() - offset);
    virtio_vsock_hdr header = Header(VIRTIO_VSOCK_OP_RW, kPorts);
    header.fwd_cnt = forwarded;
    header.len = static_cast<uint32_t>(count);
    Transmit(header, text.substr(offset, count));
    offset += count;
    device().Consume(id, count);
    Run();
    received += ReceiveAll();
    forwarded = static_cast<uint32_t>(received.size());
  }
  CHECK_EQ(received, text);
  CHECK_EQ(host.data[id], text);
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice passes on a half-close by the guest") {
  const ConnectionId id = Dial(kPorts);
  virtio_vsock_hdr shutdown = Header(VIRTIO_VSOCK_OP_SHUTDOWN, kPorts);
  shutdown.flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
  Transmit(shutdown);
  Transmit(shutdown);
  CHECK_EQ(host.ended, std::vector{id});
  CHECK(Send(id, "still here"));
  CHECK_EQ(ReceiveAll(), "still here");

  shutdown.flags = VIRTIO_VSOCK_SHUTDOWN_RCV;
  Transmit(shutdown);
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(host.closed, std::vector{id});
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice confirms a full close with a reset") {
  const ConnectionId id = Dial(kPorts);
  virtio_vsock_hdr shutdown = Header(VIRTIO_VSOCK_OP_SHUTDOWN, kPorts);
  shutdown.flags = kBothShutdown | 0xfffffff0;
  Transmit(shutdown);
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(host.closed, std::vector{id});
  CHECK(host.ended.empty());
  CHECK_EQ(device().connection_count(), 0);
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice drops what waits when the guest stops reading") {
  virtio_vsock_hdr request = Header(VIRTIO_VSOCK_OP_REQUEST, kPorts);
  request.buf_alloc = 0;
  Transmit(request);
  Receive();
  const ConnectionId id = host.opened.back().first;
  Send(id, "never read");
  CHECK_EQ(host.sent[id], 0);

  virtio_vsock_hdr shutdown = Header(VIRTIO_VSOCK_OP_SHUTDOWN, kPorts);
  shutdown.flags = VIRTIO_VSOCK_SHUTDOWN_RCV;
  Transmit(shutdown);
  CHECK_EQ(host.sent[id], 10);
  CHECK_FALSE(Send(id, "more"));
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "it still speaks");
  CHECK_EQ(host.data[id], "it still speaks");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice sends a half-close after all bytes") {
  const ConnectionId id = Dial(kPorts);
  device().Send(id, Vector("last words"));
  device().Shutdown(id);
  device().Shutdown(id);
  Run();
  CHECK_FALSE(device().Send(id, Vector("too late")));
  CHECK_EQ(Receive()->payload, "last words");
  const auto packet = Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_SHUTDOWN);
  CHECK_EQ(packet->header.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
  CHECK_FALSE(Receive());
  Transmit(VIRTIO_VSOCK_OP_RW, kPorts, "answer");
  CHECK_EQ(host.data[id], "answer");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets a connection on the host's word") {
  const ConnectionId id = Dial(kPorts);
  device().Send(id, Vector("lost"));
  device().Reset(id);
  Run();
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_FALSE(Receive());
  CHECK(host.closed.empty());
  CHECK_FALSE(device().Send(id, Vector("x")));
  device().Consume(id, 1);
  device().Shutdown(id);
  device().Reset(id);
  Run();
  CHECK_FALSE(Receive());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice tells no one of a dialled connection that was taken back") {
  const auto id = device().Connect(22);
  device().Reset(*id);
  Run();
  CHECK_FALSE(Receive());
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice resets all connections but one") {
  const ConnectionId keep = Dial({.host = 1, .guest = 1});
  Dial({.host = 1, .guest = 2});
  Dial({.host = 1, .guest = 3});
  device().ResetOthers(keep);
  Run();
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(device().connection_count(), 1);
  CHECK(Send(keep, "alive"));
  CHECK_EQ(ReceiveAll(), "alive");
}

TEST_CASE_FIXTURE(Fixture, "VsockDevice closes its connections when the driver resets it") {
  const ConnectionId id = Dial(kPorts);
  const auto dialled = device().Connect(22);
  Start();
  CHECK_EQ(host.closed.size(), 2);
  CHECK_FALSE(device().Send(id, Vector("x")));
  CHECK_FALSE(device().Send(*dialled, Vector("x")));
  CHECK_FALSE(Receive());
  CHECK_NE(Dial(kPorts), id);
}

}  // namespace
}  // namespace forklet
