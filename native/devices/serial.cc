#include "devices/serial.h"

#include <linux/serial_reg.h>

#include <algorithm>

namespace forklet {

namespace {
constexpr uint8_t kIerMask = UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI;
constexpr uint8_t kMcrMask =
    UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT1 | UART_MCR_OUT2 | UART_MCR_LOOP;
constexpr uint8_t kIirFifoEnabled = 0xc0;

// What FCR keeps of a written value: which of the other bits hold depends on the
// first, and the two that clear a FIFO are not kept.
constexpr uint8_t StoredFcr(uint8_t value) {
  constexpr uint8_t kKept = static_cast<uint8_t>(~(UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT));
  return (value & UART_FCR_ENABLE_FIFO) ? value & kKept : 0;
}
}  // namespace

void Serial::Read(uint64_t offset, std::span<uint8_t> data) {
  std::lock_guard lock(mutex_);
  // A wide access is so many byte accesses to successive ports, as on the ISA bus.
  for (size_t i = 0; i < data.size(); ++i) data[i] = ReadRegister(offset + i);
  UpdateLine();
}

void Serial::Write(uint64_t offset, std::span<const uint8_t> data) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < data.size(); ++i) WriteRegister(offset + i, data[i]);
  UpdateLine();
}

Serial::State Serial::Save() const {
  std::lock_guard lock(mutex_);
  return state_;
}

Status Serial::Restore(const State& state) {
  if ((state.ier & ~kIerMask) != 0 || (state.mcr & ~kMcrMask) != 0 ||
      state.fcr != StoredFcr(state.fcr) || state.input.size() > kMaxInputBytes) {
    return Error{ErrorCode::kBadSnapshot, 0, "", "impossible state of the serial console"};
  }
  std::lock_guard lock(mutex_);
  state_ = state;
  return Ok();
}

void Serial::Kick() {
  std::lock_guard lock(mutex_);
  state_.line = false;
  UpdateLine();
}

size_t Serial::Input(std::span<const uint8_t> data) {
  std::lock_guard lock(mutex_);
  const size_t count = std::min(data.size(), kMaxInputBytes - state_.input.size());
  state_.input.insert(state_.input.end(), data.begin(),
                      data.begin() + static_cast<ptrdiff_t>(count));
  // A new edge even if the last one went unheard: input must not get stuck.
  if (count > 0) state_.line = false;
  UpdateLine();
  return count;
}

uint8_t Serial::ReadRegister(uint64_t offset) {
  const bool divisor_latch = (state_.lcr & UART_LCR_DLAB) != 0;
  switch (offset) {
    case UART_RX:
      return divisor_latch ? state_.dll : ReadInput();
    case UART_IER:
      return divisor_latch ? state_.dlm : state_.ier;
    case UART_IIR: {
      const uint8_t source = PendingInterrupt();
      // Reporting an empty transmitter settles it until the next byte.
      if (source == UART_IIR_THRI) state_.thre_pending = false;
      return source | ((state_.fcr & UART_FCR_ENABLE_FIFO) ? kIirFifoEnabled : 0);
    }
    case UART_LCR:
      return state_.lcr;
    case UART_MCR:
      return state_.mcr;
    case UART_LSR:
      return UART_LSR_TEMT | UART_LSR_THRE | (state_.input.empty() ? 0 : UART_LSR_DR);
    case UART_MSR:
      return ModemStatus();
    case UART_SCR:
      return state_.scr;
    default:
      return 0xff;
  }
}

void Serial::WriteRegister(uint64_t offset, uint8_t value) {
  const bool divisor_latch = (state_.lcr & UART_LCR_DLAB) != 0;
  switch (offset) {
    case UART_TX:
      if (divisor_latch) {
        state_.dll = value;
      } else {
        Transmit(value);
      }
      return;
    case UART_IER:
      if (divisor_latch) {
        state_.dlm = value;
        return;
      }
      // Asking for the transmitter's interrupt while it is empty gives one at
      // once: drivers start sending that way, and probe for it.
      if ((value & UART_IER_THRI) && !(state_.ier & UART_IER_THRI)) state_.thre_pending = true;
      state_.ier = value & kIerMask;
      // Whatever is pending rises anew, should the guest have missed an edge.
      state_.line = false;
      return;
    case UART_FCR:
      if (value & UART_FCR_CLEAR_RCVR) state_.input.clear();
      state_.fcr = StoredFcr(value);
      return;
    case UART_LCR:
      state_.lcr = value;
      return;
    case UART_MCR:
      state_.mcr = value & kMcrMask;
      return;
    case UART_SCR:
      state_.scr = value;
      return;
    default:
      return;  // LSR and MSR are read-only
  }
}

uint8_t Serial::ReadInput() {
  if (state_.input.empty()) return 0;
  const uint8_t value = state_.input.front();
  state_.input.pop_front();
  return value;
}

void Serial::Transmit(uint8_t value) {
  if (state_.mcr & UART_MCR_LOOP) {
    // A full receiver loses the byte, as an overrun does.
    if (state_.input.size() < kMaxInputBytes) state_.input.push_back(value);
  } else {
    sink_(value);
  }
  // Sent already: the transmitter is empty anew.
  state_.thre_pending = true;
}

uint8_t Serial::PendingInterrupt() const {
  if ((state_.ier & UART_IER_RDI) && !state_.input.empty()) return UART_IIR_RDI;
  if ((state_.ier & UART_IER_THRI) && state_.thre_pending) return UART_IIR_THRI;
  return UART_IIR_NO_INT;
}

uint8_t Serial::ModemStatus() const {
  if (!(state_.mcr & UART_MCR_LOOP)) return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
  // In loopback the four outputs appear at the four inputs.
  return static_cast<uint8_t>(((state_.mcr & UART_MCR_RTS) ? UART_MSR_CTS : 0) |
                              ((state_.mcr & UART_MCR_DTR) ? UART_MSR_DSR : 0) |
                              ((state_.mcr & UART_MCR_OUT1) ? UART_MSR_RI : 0) |
                              ((state_.mcr & UART_MCR_OUT2) ? UART_MSR_DCD : 0));
}

void Serial::UpdateLine() {
  const bool line = PendingInterrupt() != UART_IIR_NO_INT;
  if (line && !state_.line) interrupt_.Raise();
  state_.line = line;
}

}  // namespace forklet
