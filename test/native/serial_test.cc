#include "devices/serial.h"

#include <linux/serial_reg.h>

#include <string>
#include <vector>

#include "virtio_driver.h"

#include "doctest.h"

namespace forklet {
namespace {

struct Uart {
  testing::CountingLine line;
  std::string output;
  Serial serial{line, [this](uint8_t byte) { output.push_back(static_cast<char>(byte)); }};

  uint8_t In(uint64_t offset) {
    uint8_t value = 0;
    serial.Read(offset, {&value, 1});
    return value;
  }
  void Out(uint64_t offset, uint8_t value) { serial.Write(offset, {&value, 1}); }
  size_t Input(const std::string& text) {
    return serial.Input({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
};

TEST_CASE_FIXTURE(Uart, "Serial passes Linux's probe for a 16550A") {
  // autoconfig(): IER keeps its low four bits only.
  Out(UART_IER, 0);
  CHECK_EQ(In(UART_IER) & 0x0f, 0);
  Out(UART_IER, 0xff);
  CHECK_EQ(In(UART_IER), 0x0f);
  Out(UART_IER, 0);
  // Loopback: RTS and OUT2 come back as CTS and DCD.
  Out(UART_MCR, UART_MCR_LOOP | 0x0a);
  CHECK_EQ(In(UART_MSR) & 0xf0, 0x90);
  Out(UART_MCR, 0);
  // FIFO enabled shows in both top bits of IIR, as on a 16550A; the 64-byte
  // FIFO of a 16750 does not appear.
  Out(UART_LCR, UART_LCR_CONF_MODE_B);
  Out(UART_EFR, 0);
  Out(UART_LCR, 0);
  Out(UART_FCR, UART_FCR_ENABLE_FIFO);
  CHECK_EQ(In(UART_IIR) >> 6, 3);
  // No EFR (16650 and later) in either mode.
  Out(UART_LCR, UART_LCR_CONF_MODE_A);
  CHECK_NE(In(UART_EFR), 0);
  Out(UART_LCR, UART_LCR_CONF_MODE_B);
  CHECK_NE(In(UART_EFR), 0);
  Out(UART_LCR, UART_LCR_CONF_MODE_A);
  Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR7_64BYTE);
  CHECK_EQ(In(UART_IIR) >> 5, 6);
  Out(UART_LCR, 0);
  // Scratch register, and divisor behind DLAB.
  Out(UART_SCR, 0x5a);
  CHECK_EQ(In(UART_SCR), 0x5a);
  Out(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
  Out(UART_DLL, 0x0c);
  Out(UART_DLM, 0x01);
  CHECK_EQ(In(UART_DLL), 0x0c);
  CHECK_EQ(In(UART_DLM), 0x01);
  Out(UART_LCR, UART_LCR_WLEN8);
  CHECK_EQ(In(UART_IER), 0);
  CHECK(output.empty());
}

TEST_CASE_FIXTURE(Uart, "Serial passes Linux's test of the THRE interrupt") {
  // serial8250_THRE_test(): asserted on each enabling, not only on the first.
  Out(UART_IER, UART_IER_THRI);
  CHECK_EQ(In(UART_IIR), UART_IIR_THRI);
  Out(UART_IER, 0);
  Out(UART_IER, UART_IER_THRI);
  CHECK_EQ(In(UART_IIR), UART_IIR_THRI);
  Out(UART_IER, 0);
  CHECK_EQ(In(UART_IIR), UART_IIR_NO_INT);
  CHECK_EQ(In(UART_LSR), UART_LSR_TEMT | UART_LSR_THRE);
}

TEST_CASE_FIXTURE(Uart, "Serial sends output in order and stays ready") {
  for (char c : std::string("boot\n")) {
    CHECK_NE(In(UART_LSR) & UART_LSR_THRE, 0);
    Out(UART_TX, static_cast<uint8_t>(c));
  }

  CHECK_EQ(output, "boot\n");
  CHECK_EQ(line.Take(), 0);
}

TEST_CASE_FIXTURE(Uart, "Serial raises an edge when sending can start and after each burst") {
  Out(UART_IER, UART_IER_THRI);
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(In(UART_IIR), UART_IIR_THRI);

  for (int i = 0; i < 16; ++i) Out(UART_TX, 'x');
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(In(UART_IIR), UART_IIR_THRI);
  CHECK_EQ(In(UART_IIR), UART_IIR_NO_INT);

  Out(UART_IER, 0);
  CHECK_EQ(line.Take(), 0);
}

TEST_CASE_FIXTURE(Uart, "Serial raises an edge for input and reports it before the transmitter") {
  Out(UART_IER, UART_IER_RDI | UART_IER_THRI);
  line.Take();
  CHECK_EQ(Input("hi"), 2);
  CHECK_EQ(line.Take(), 1);

  CHECK_EQ(In(UART_IIR), UART_IIR_RDI);
  CHECK_NE(In(UART_LSR) & UART_LSR_DR, 0);
  CHECK_EQ(In(UART_RX), 'h');
  CHECK_EQ(In(UART_IIR), UART_IIR_RDI);
  CHECK_EQ(In(UART_RX), 'i');
  CHECK_EQ(In(UART_IIR), UART_IIR_THRI);
  CHECK_EQ(In(UART_IIR), UART_IIR_NO_INT);
  CHECK_EQ(In(UART_LSR) & UART_LSR_DR, 0);
  CHECK_EQ(In(UART_RX), 0);
}

TEST_CASE_FIXTURE(Uart, "Serial raises anew for input when the guest missed an edge") {
  Out(UART_IER, UART_IER_RDI);
  Input("a");
  CHECK_EQ(line.Take(), 1);
  // The guest was not listening. More input, or its next write of IER, tells it.
  Input("b");
  CHECK_EQ(line.Take(), 1);
  Out(UART_IER, UART_IER_RDI);
  CHECK_EQ(line.Take(), 1);
}

TEST_CASE_FIXTURE(Uart, "Serial keeps early input for a guest that enables its interrupt later") {
  Input("x");
  CHECK_EQ(line.Take(), 0);
  Out(UART_IER, UART_IER_RDI);
  CHECK_EQ(line.Take(), 1);
  CHECK_EQ(In(UART_RX), 'x');
}

TEST_CASE_FIXTURE(Uart, "Serial takes no more input than its bound") {
  const std::string text(Serial::kMaxInputBytes + 100, 'i');
  CHECK_EQ(Input(text), Serial::kMaxInputBytes);
  CHECK_EQ(Input("more"), 0);
  CHECK_EQ(In(UART_RX), 'i');
  CHECK_EQ(Input("more"), 1);
  Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
  CHECK_EQ(In(UART_LSR) & UART_LSR_DR, 0);
}

TEST_CASE_FIXTURE(Uart, "Serial returns written bytes in loopback and sends none") {
  Out(UART_MCR, UART_MCR_LOOP);
  for (size_t i = 0; i < Serial::kMaxInputBytes + 10; ++i) Out(UART_TX, 'l');

  CHECK(output.empty());
  size_t count = 0;
  while (In(UART_LSR) & UART_LSR_DR) {
    CHECK_EQ(In(UART_RX), 'l');
    ++count;
  }
  CHECK_EQ(count, Serial::kMaxInputBytes);
}

TEST_CASE_FIXTURE(Uart, "Serial splits a wide access into bytes at successive ports") {
  const uint8_t wide[8] = {'A', 0x0f, 0, 0x03, 0, 0, 0, 0x77};
  serial.Write(0, wide);
  CHECK_EQ(output, "A");
  CHECK_EQ(In(UART_IER), 0x0f);
  CHECK_EQ(In(UART_SCR), 0x77);

  uint8_t read[8] = {};
  serial.Read(4, read);
  CHECK_EQ(read[3], 0x77);
  CHECK_EQ(read[4], 0xff);
}

}  // namespace
}  // namespace forklet
