// What every device keeps across a freeze, and what it does with a state that no
// guest could have brought it into: saved states come back from files.
#include "snapshot/device_state.h"

#include <linux/serial_reg.h>

#include <functional>
#include <string>
#include <vector>

#include "devices/virtio/rng.h"
#include "vsock_guest.h"

#include "doctest.h"

namespace forklet {
namespace {

using testing::VsockGuest;

constexpr VsockPorts kPorts{.host = 1, .guest = 5000};
constexpr uint32_t kStarted = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                              VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

template <class State>
std::vector<uint8_t> ToBytes(const State& state) {
  StateWriter out;
  WriteState(out, state);
  return std::move(out).Take();
}

template <class State>
State FromBytes(std::span<const uint8_t> bytes) {
  StateReader in(bytes);
  State state;
  REQUIRE(ReadState(in, state));
  REQUIRE(in.Finish());
  return state;
}

// --- serial ---

struct Uart {
  testing::CountingLine line;
  Serial serial{line, [](uint8_t) {}};

  uint8_t In(uint64_t offset) {
    uint8_t value = 0;
    serial.Read(offset, {&value, 1});
    return value;
  }
  void Out(uint64_t offset, uint8_t value) { serial.Write(offset, {&value, 1}); }
};

TEST_CASE("Serial goes on after a restore where it was when it was saved") {
  Uart before;
  before.Out(UART_LCR, UART_LCR_DLAB);
  before.Out(UART_DLL, 12);
  before.Out(UART_DLM, 1);
  before.Out(UART_LCR, 0x03);
  before.Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_8);
  before.Out(UART_MCR, UART_MCR_OUT2 | UART_MCR_DTR);
  before.Out(UART_SCR, 0x5a);
  before.Out(UART_IER, UART_IER_RDI | UART_IER_THRI);
  const uint8_t input[] = {'a', 'b', 'c'};
  before.serial.Input(input);
  REQUIRE_EQ(before.In(UART_RX), 'a');
  const Serial::State saved = before.serial.Save();

  Uart after;
  REQUIRE(after.serial.Restore(FromBytes<Serial::State>(ToBytes(saved))).ok());

  CHECK(after.serial.Save() == saved);
  CHECK_EQ(after.line.Take(), 0);
  CHECK_EQ(after.In(UART_SCR), 0x5a);
  CHECK_EQ(after.In(UART_MCR), UART_MCR_OUT2 | UART_MCR_DTR);
  CHECK_EQ(after.In(UART_IIR) & UART_IIR_ID, UART_IIR_RDI);
  CHECK_EQ(after.In(UART_RX), 'b');
  CHECK_EQ(after.In(UART_RX), 'c');
  CHECK_EQ(after.In(UART_IIR) & UART_IIR_ID, UART_IIR_THRI);
}

TEST_CASE("Serial raises a pending interrupt anew when a restored VM is entered") {
  Uart before;
  before.Out(UART_IER, UART_IER_RDI);
  const uint8_t input[] = {'a'};
  before.serial.Input(input);
  Uart after;
  REQUIRE(after.serial.Restore(before.serial.Save()).ok());
  CHECK_EQ(after.line.Take(), 0);

  after.serial.Kick();

  CHECK_EQ(after.line.Take(), 1);
  Uart idle;
  idle.serial.Kick();
  CHECK_EQ(idle.line.Take(), 0);
}

TEST_CASE("Serial refuses a state that no guest can bring it into") {
  const auto refused = [](const std::function<void(Serial::State&)>& change) {
    Uart uart;
    const Serial::State before = uart.serial.Save();
    Serial::State state = before;
    change(state);
    const Status status = uart.serial.Restore(state);
    return !status.ok() && status.error().code == ErrorCode::kBadSnapshot &&
           uart.serial.Save() == before;
  };
  CHECK(refused([](Serial::State& state) { state.ier = 0x10; }));
  CHECK(refused([](Serial::State& state) { state.mcr = 0x80; }));
  CHECK(refused([](Serial::State& state) { state.fcr = UART_FCR_TRIGGER_8; }));
  CHECK(refused(
      [](Serial::State& state) { state.fcr = UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR; }));
  CHECK(refused([](Serial::State& state) { state.input.resize(Serial::kMaxInputBytes + 1); }));
}

// --- virtio-mmio and its queues, with the entropy device ---

struct RngMachine {
  explicit RngMachine(const GuestMemory& memory) : memory(memory) {}

  const GuestMemory& memory;
  testing::CountingLine line;
  RngDevice device;
  std::unique_ptr<VirtioMmio> transport = VirtioMmio::Create(device, memory, line).value();
  testing::MmioDriver driver{*transport};
};

struct Rng {
  GuestMemory memory = testing::MakeMemory();
  testing::DriverQueue queue{memory, 0x10000, 8};
  RngMachine before{memory};
  RngMachine after{memory};

  void Start() {
    before.driver.Negotiate();
    before.driver.SetUpQueue(0, queue.Setup());
    before.driver.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
    before.transport->HandleNotify(0);
  }
  // The state of a device that has taken and returned three chains.
  VirtioMmio::State Used() {
    Start();
    for (int i = 0; i < 3; ++i) queue.Add({{0x100000, 16, true}});
    before.transport->HandleNotify(0);
    return before.transport->Save();
  }
  bool Refused(const VirtioMmio::State& state) {
    const Status status = after.transport->Restore(state);
    return !status.ok() && status.error().code == ErrorCode::kBadSnapshot &&
           after.transport->Save() == VirtioMmio::State{.queues = {QueueState()}};
  }
};

TEST_CASE_FIXTURE(Rng, "VirtioMmio goes on after a restore where it was when it was saved") {
  const VirtioMmio::State saved = Used();
  REQUIRE_EQ(saved.queues.at(0).next_used, 3);
  REQUIRE_EQ(saved.interrupt_status, VIRTIO_MMIO_INT_VRING);

  REQUIRE(after.transport->Restore(FromBytes<VirtioMmio::State>(ToBytes(saved))).ok());

  CHECK(after.transport->Save() == saved);
  CHECK_EQ(after.driver.status(), kStarted);
  CHECK_EQ(after.driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
  for (int i = 0; i < 3; ++i) REQUIRE(queue.TakeUsed());
  queue.SetUsedEvent(3);
  const uint16_t head = queue.Add({{0x100000, 16, true}});
  after.transport->HandleNotify(0);
  const auto used = queue.TakeUsed();
  REQUIRE(used);
  CHECK_EQ(used->id, head);
  CHECK_EQ(used->len, 16);
  CHECK_EQ(after.line.Take(), 1);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio stays quiet after a restore until it is kicked") {
  const VirtioMmio::State saved = Used();
  // Work that was notified of and not looked at.
  queue.Add({{0x100000, 16, true}});
  REQUIRE(after.transport->Restore(saved).ok());
  CHECK_EQ(after.transport->notifier(0).Drain(), 0);
  CHECK_EQ(after.line.Take(), 0);

  after.transport->Kick();

  CHECK_EQ(after.transport->notifier(0).Drain(), 1);
  // The interrupt that the driver has not acknowledged yet.
  CHECK_EQ(after.line.Take(), 1);
  after.transport->HandleNotify(0);
  CHECK_EQ(after.transport->Save().queues.at(0).next_used, 4);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio raises nothing at a kick when all was acknowledged") {
  Used();
  before.driver.Write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
  REQUIRE(after.transport->Restore(before.transport->Save()).ok());
  after.transport->Kick();
  CHECK_EQ(after.line.Take(), 0);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio can be put back to an earlier state in place") {
  const VirtioMmio::State saved = Used();
  before.driver.SetStatus(0);
  before.transport->HandleNotify(0);

  REQUIRE(before.transport->Restore(saved).ok());

  CHECK(before.transport->Save() == saved);
  queue.Add({{0x100000, 16, true}});
  before.transport->HandleNotify(0);
  CHECK_EQ(before.transport->Save().queues.at(0).next_used, 4);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio keeps a half-finished start-up sequence") {
  before.driver.Negotiate();
  before.driver.SetUpQueue(0, queue.Setup());
  before.driver.Write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 7);
  before.driver.Write(VIRTIO_MMIO_QUEUE_SEL, 0xffffffff);
  const VirtioMmio::State saved = before.transport->Save();
  CHECK(saved.reset_pending);
  REQUIRE(after.transport->Restore(FromBytes<VirtioMmio::State>(ToBytes(saved))).ok());
  CHECK(after.transport->Save() == saved);

  after.driver.AddStatus(VIRTIO_CONFIG_S_DRIVER_OK);
  queue.Add({{0x100000, 16, true}});
  after.transport->HandleNotify(0);

  CHECK(queue.TakeUsed());
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio takes indices as they come and stops a ring that contradicts") {
  VirtioMmio::State state = Used();
  state.queues.at(0).next_available = 60000;
  state.queues.at(0).next_used = 9;
  state.queues.at(0).signalled_used = 65535;
  REQUIRE(after.transport->Restore(state).ok());

  after.transport->HandleNotify(0);

  CHECK_EQ(after.driver.status(), kStarted | VIRTIO_CONFIG_S_NEEDS_RESET);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio needs a reset when restored rings are not acceptable") {
  VirtioMmio::State good = Used();
  good.interrupt_status = 0;
  const auto status_with = [&](const std::function<void(QueueState&)>& change) {
    VirtioMmio::State state = good;
    change(state.queues.at(0));
    RngMachine machine(memory);
    REQUIRE(machine.transport->Restore(state).ok());
    CHECK_EQ(machine.line.Take(), 0);
    machine.transport->HandleNotify(0);
    machine.transport->Kick();
    CHECK_EQ(machine.line.Take(), 1);
    CHECK_EQ(machine.driver.Read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    CHECK_EQ(machine.transport->needs_reset_count(), 1);
    return machine.driver.status();
  };
  constexpr uint32_t kStopped = kStarted | VIRTIO_CONFIG_S_NEEDS_RESET;
  CHECK_EQ(status_with([](QueueState& state) { state.size = 0; }), kStopped);
  CHECK_EQ(status_with([](QueueState& state) { state.size = 7; }), kStopped);
  CHECK_EQ(status_with([](QueueState& state) { state.available.value = 1; }), kStopped);
  CHECK_EQ(status_with([](QueueState& state) { state.used.value = 4u << 20; }), kStopped);
  CHECK_EQ(status_with([](QueueState& state) { state.descriptors.value = ~uint64_t{15}; }),
           kStopped);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio keeps a device stopped that was saved stopped") {
  Start();
  queue.SetAvailableIndex(1000);
  before.transport->HandleNotify(0);
  REQUIRE_EQ(before.driver.status(), kStarted | VIRTIO_CONFIG_S_NEEDS_RESET);
  REQUIRE(after.transport->Restore(before.transport->Save()).ok());

  queue.SetAvailableIndex(1);
  after.transport->HandleNotify(0);

  CHECK_FALSE(queue.TakeUsed());
  CHECK_EQ(after.driver.status(), kStarted | VIRTIO_CONFIG_S_NEEDS_RESET);
}

TEST_CASE_FIXTURE(Rng, "VirtioMmio refuses registers that no driver can write") {
  const VirtioMmio::State good = Used();
  const auto refused = [&](const std::function<void(VirtioMmio::State&)>& change) {
    VirtioMmio::State state = good;
    change(state);
    return Refused(state);
  };
  CHECK(refused([](auto& state) { state.status |= 0x100; }));
  CHECK(refused([](auto& state) { state.status &= ~uint32_t{VIRTIO_CONFIG_S_ACKNOWLEDGE}; }));
  CHECK(refused([](auto& state) { state.status &= ~uint32_t{VIRTIO_CONFIG_S_FEATURES_OK}; }));
  CHECK(refused([](auto& state) { state.status = VIRTIO_CONFIG_S_NEEDS_RESET; }));
  CHECK(refused([](auto& state) { state.driver_features = 0; }));
  CHECK(refused([](auto& state) { state.driver_features |= 1; }));
  CHECK(refused([](auto& state) { state.interrupt_status = 4; }));
  CHECK(refused([](auto& state) { state.queues.clear(); }));
  CHECK(refused([](auto& state) { state.queues.emplace_back(); }));
  CHECK(refused([](auto& state) { state.queues.at(0).size = 16; }));
  // A queue that was set up before FEATURES_OK, or used before DRIVER_OK.
  CHECK(refused([](auto& state) { state.status = VIRTIO_CONFIG_S_ACKNOWLEDGE; }));
  CHECK(refused([](auto& state) { state.status &= ~uint32_t{VIRTIO_CONFIG_S_DRIVER_OK}; }));
}

// --- virtio-vsock ---

// Two hosts' devices in front of one guest's memory: what `from` has saved goes
// on in `to`.
struct Vsock {
  VsockGuest from;
  testing::RecordingHost host;
  VsockDevice to{VsockConfig(), host};

  Vsock() { from.Start(); }

  Status Restore(const VsockDevice::State& state) { return to.Restore(state); }
  // A state with an open connection each way, and bytes that wait.
  VsockDevice::State Busy() {
    from.Start(0);
    from.Transmit(VIRTIO_VSOCK_OP_REQUEST, kPorts);
    from.device().Send(from.host.opened.back().first, VsockGuest::Vector("hello"));
    from.device().Send(from.host.opened.back().first, VsockGuest::Vector("world"));
    from.device().Connect(6000);
    from.Transmit(VIRTIO_VSOCK_OP_RW, {.host = 9, .guest = 9});
    return from.device().Save();
  }
};

// A device that goes on from a saved state with a guest that goes on as well.
struct Continued : VsockGuest {
  explicit Continued(const VsockDevice::State& state) {
    Start();
    REQUIRE(device().Restore(FromBytes<VsockDevice::State>(ToBytes(state))).ok());
  }
};

TEST_CASE_FIXTURE(Vsock, "VsockDevice keeps connections, waiting bytes and resets, in line") {
  const VsockDevice::State saved = Busy();
  REQUIRE_EQ(saved.connections.size(), 2);
  REQUIRE_EQ(saved.connections[0].queued, VsockGuest::Vector("helloworld"));
  REQUIRE_EQ(saved.ready.size(), 2);
  REQUIRE_EQ(saved.resets.size(), 1);

  REQUIRE(Restore(FromBytes<VsockDevice::State>(ToBytes(saved))).ok());

  CHECK(to.Save() == saved);
  CHECK_EQ(to.connection_count(), 2);
  CHECK(host.opened.empty());
  CHECK(host.closed.empty());
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice sends after a restore what had not left before") {
  Continued after(Busy());
  CHECK_FALSE(after.Receive());
  after.transport().Kick();
  REQUIRE(after.Run());

  // The reset first, and then the connections in their turns.
  CHECK_EQ(after.ReceiveOp(), VIRTIO_VSOCK_OP_RST);
  CHECK_EQ(after.ReceiveOp(), VIRTIO_VSOCK_OP_RESPONSE);
  CHECK_EQ(after.ReceiveOp(), VIRTIO_VSOCK_OP_REQUEST);
  const auto packet = after.Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->payload, "helloworld");
  CHECK_FALSE(after.Receive());
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice sends the rest of bytes that were sent in part") {
  const ConnectionId id = from.Dial(kPorts);
  virtio_vsock_hdr credit = from.Header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kPorts);
  credit.buf_alloc = 6;
  from.Transmit(credit);
  from.device().Send(id, VsockGuest::Vector("first "));
  from.device().Send(id, VsockGuest::Vector("second"));
  from.Run();
  credit.buf_alloc = 9;
  from.Transmit(credit);
  const VsockDevice::State saved = from.device().Save();
  REQUIRE_EQ(saved.connections.at(0).queued, VsockGuest::Vector("ond"));
  REQUIRE_EQ(saved.connections.at(0).state.sent, 9);

  Continued after(saved);
  credit.buf_alloc = 100;
  after.Transmit(credit);

  const auto packet = after.Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->payload, "ond");
  CHECK_EQ(after.host.sent[id], 3);
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice goes on with ids and ports that are new") {
  const ConnectionId dialled = from.device().Connect(5).value();
  Continued after(from.device().Save());
  const ConnectionId next = after.device().Connect(5).value();
  CHECK_GT(next, dialled);
  const VsockDevice::State state = after.device().Save();
  CHECK_NE(state.connections.at(0).state.ports.host, state.connections.at(1).state.ports.host);
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice gives a fork's guest its credit for what is gone") {
  VsockConfig config;
  const ConnectionId id = from.Dial(kPorts);
  // More than half of the buffer, delivered and never consumed.
  for (uint32_t sent = 0; sent < config.buffer_bytes / 2 + 0x1000; sent += 0x1000) {
    from.Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(0x1000, 'x'));
  }
  Continued after(from.device().Save());

  after.device().ForgetDelivered();

  CHECK_EQ(after.transport().notifier(VsockDevice::kRxQueue).Drain(), 0);
  after.transport().Kick();
  REQUIRE(after.Run());
  const auto packet = after.Receive();
  REQUIRE(packet);
  CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  CHECK_EQ(packet->header.fwd_cnt, config.buffer_bytes / 2 + 0x1000);
  // All of the buffer is free again.
  for (uint32_t sent = 0; sent < config.buffer_bytes; sent += 0x1000) {
    after.Transmit(VIRTIO_VSOCK_OP_RW, kPorts, std::string(0x1000, 'x'));
  }
  CHECK_EQ(after.host.data[id].size(), config.buffer_bytes);
  CHECK_EQ(after.device().counters().violations, 0);
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice of a fork resets all connections but one") {
  const ConnectionId keep = from.Dial(kPorts);
  from.Dial({.host = 1, .guest = 5001});
  from.Dial({.host = 1, .guest = 5002});
  Continued after(from.device().Save());

  after.device().ResetOthers(keep);
  after.transport().Kick();
  REQUIRE(after.Run());

  CHECK_EQ(after.device().connection_count(), 1);
  for (uint32_t port : {5001u, 5002u}) {
    const auto packet = after.Receive();
    REQUIRE(packet);
    CHECK_EQ(packet->header.op, VIRTIO_VSOCK_OP_RST);
    CHECK_EQ(packet->header.dst_port, port);
  }
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice can be put back to an earlier state in place") {
  from.Dial(kPorts);
  const VsockDevice::State saved = from.device().Save();
  from.Dial({.host = 1, .guest = 5001});
  from.Transmit(VIRTIO_VSOCK_OP_RST, kPorts);
  const size_t closed = from.host.closed.size();

  REQUIRE(from.device().Restore(saved).ok());

  CHECK(from.device().Save() == saved);
  CHECK_EQ(from.host.closed.size(), closed);
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice puts a connection in line that a saved state left out") {
  VsockDevice::State state = Busy();
  state.ready.clear();
  REQUIRE(Restore(state).ok());
  CHECK_EQ(to.Save().ready.size(), 2);
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice refuses a state that no guest can bring it into") {
  const VsockDevice::State good = Busy();
  using State = VsockDevice::State;
  const auto refused = [&](const std::function<void(State&)>& change) {
    State state = good;
    change(state);
    const Status status = Restore(state);
    return !status.ok() && status.error().code == ErrorCode::kBadSnapshot && to.Save() == State();
  };
  REQUIRE(good.connections[0].state.phase == VsockConnectionState::Phase::kOpen);
  REQUIRE(good.connections[1].state.phase == VsockConnectionState::Phase::kConnecting);
  const auto open = [&](const std::function<void(VsockConnectionState&)>& change) {
    return refused([&](State& state) { change(state.connections[0].state); });
  };
  const auto connecting = [&](const std::function<void(VsockConnectionState&)>& change) {
    return refused([&](State& state) { change(state.connections[1].state); });
  };
  CHECK(refused([](State& state) { state.next_id = 0; }));
  CHECK(refused([](State& state) { state.next_id = ~uint64_t{0}; }));
  CHECK(refused([](State& state) { state.next_host_port = 1023; }));
  CHECK(refused([](State& state) { state.next_host_port = kVsockAnyPort; }));
  CHECK(refused([](State& state) { state.ready.push_back(state.ready[0]); }));
  CHECK(refused([](State& state) { state.ready[0] = ConnectionId{77}; }));
  CHECK(refused([](State& state) { state.resets.resize(VsockDevice::kMaxPendingResets + 1); }));
  CHECK(refused([](State& state) {
    state.connections.resize(VsockConfig().max_connections + 1, state.connections[0]);
  }));
  CHECK(refused(
      [](State& state) { state.connections[0].queued.resize(VsockDevice::kMaxSavedBytes + 1); }));
  CHECK(refused([](State& state) { std::swap(state.connections[0], state.connections[1]); }));
  CHECK(open([](auto& state) { state.id = ConnectionId{0}; }));
  CHECK(open([&](auto& state) { state.id = ConnectionId{good.next_id}; }));
  CHECK(open([&](auto& state) { state.id = good.connections[1].state.id; }));
  CHECK(open([&](auto& state) { state.ports = good.connections[1].state.ports; }));
  CHECK(open([](auto& state) { state.send_request = true; }));
  CHECK(open([](auto& state) { state.send_shutdown = true; }));
  CHECK(open([](auto& state) { state.peer_shutdown = 4; }));
  CHECK(open([](auto& state) { state.peer_shutdown = 3; }));
  CHECK(open([](auto& state) { state.peer_shutdown = VIRTIO_VSOCK_SHUTDOWN_RCV; }));
  CHECK(open([](auto& state) { state.received = VsockConfig().buffer_bytes + 1; }));
  CHECK(open([](auto& state) { state.consumed = 1; }));
  CHECK(connecting([](auto& state) { state.send_response = true; }));
  CHECK(connecting([](auto& state) { state.send_credit_update = true; }));
  CHECK(connecting([](auto& state) { state.peer_shutdown = VIRTIO_VSOCK_SHUTDOWN_SEND; }));
  CHECK(connecting([](auto& state) { state.received = 1; }));
  CHECK(connecting([](auto& state) { state.sent = 1; }));
  CHECK(connecting([](auto& state) { state.reported_consumed = 1; }));
}

TEST_CASE_FIXTURE(Vsock, "VsockDevice bounds the bytes that all connections wait to send") {
  VsockDevice::State state = Busy();
  const VsockDevice::State::Connection first = state.connections[0];
  state.connections.clear();
  state.ready.clear();
  const auto count = VsockDevice::kMaxSavedBytesInAll / VsockDevice::kMaxSavedBytes;
  for (uint32_t i = 0; i < count; ++i) {
    state.connections.push_back(first);
    state.connections.back().state.id = ConnectionId{i + 1};
    state.connections.back().state.ports.guest = i;
    state.connections.back().queued.resize(VsockDevice::kMaxSavedBytes);
  }
  state.next_id = count + 2;
  CHECK(Restore(state).ok());
  state.connections.push_back(first);
  state.connections.back().state.id = ConnectionId{count + 1};
  CHECK_FALSE(Restore(state).ok());
}

// --- all of them ---

TEST_CASE_FIXTURE(Vsock, "States of devices are refused when cut short anywhere or too long") {
  DevicesState state;
  const uint8_t input[] = {1, 2, 3};
  state.serial.input.assign(std::begin(input), std::end(input));
  state.vsock = Busy();
  state.vsock_transport = from.transport().Save();
  state.rng_transport.queues.resize(1);
  std::vector<uint8_t> bytes = ToBytes(state);
  CHECK(FromBytes<DevicesState>(bytes) == state);

  for (size_t size = 0; size < bytes.size(); ++size) {
    DevicesState cut;
    StateReader in({bytes.data(), size});
    CHECK_FALSE(ReadState(in, cut));
  }
  bytes.push_back(0);
  DevicesState longer;
  StateReader in(bytes);
  CHECK(ReadState(in, longer));
  CHECK_FALSE(in.Finish());
}

}  // namespace
}  // namespace forklet
