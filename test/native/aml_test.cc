#include "arch/x86_64/aml.h"

#include "doctest.h"

namespace forklet {
namespace {

using aml::Code;

// The bytes are those of ACPI 6.4 §20.2 (terms) and §6.4 (resources); acpi_test.cc
// holds a whole table against the reference compiler.

TEST_CASE("AML integers take the shortest form") {
  CHECK_EQ(aml::Integer(0), Code{0x00});
  CHECK_EQ(aml::Integer(1), Code{0x01});
  CHECK_EQ(aml::Integer(2), Code{0x0a, 0x02});
  CHECK_EQ(aml::Integer(0xff), Code{0x0a, 0xff});
  CHECK_EQ(aml::Integer(0x100), Code{0x0b, 0x00, 0x01});
  CHECK_EQ(aml::Integer(0x12345), Code{0x0c, 0x45, 0x23, 0x01, 0x00});
  CHECK_EQ(aml::Integer(0x1'0000'0000), Code{0x0e, 0, 0, 0, 0, 1, 0, 0, 0});
}

TEST_CASE("AML names are padded to four characters") {
  CHECK_EQ(aml::Name("_S5", {0x00}), Code{0x08, '_', 'S', '5', '_', 0x00});
  CHECK_EQ(aml::Name("ABCD", {0x01}), Code{0x08, 'A', 'B', 'C', 'D', 0x01});
}

TEST_CASE("AML strings end with a zero, EISA ids are compressed") {
  CHECK_EQ(aml::String("A0"), Code{0x0d, 'A', '0', 0x00});
  // As every DSDT with a serial port has it.
  CHECK_EQ(aml::EisaId("PNP0501"), Code{0x0c, 0x41, 0xd0, 0x05, 0x01});
}

TEST_CASE("An AML length counts itself and what follows it, in one byte or two") {
  const Code longest_short = aml::Scope("_SB", Code(58, 0xaa));
  const Code shortest_long = aml::Scope("_SB", Code(59, 0xaa));

  CHECK_EQ(longest_short.size(), 1 + 63);
  CHECK_EQ(longest_short[1], 63);
  CHECK_EQ(shortest_long.size(), 1 + 65);
  CHECK_EQ(shortest_long[1], 0x40 | (65 & 0xf));
  CHECK_EQ(shortest_long[2], 65 >> 4);
}

TEST_CASE("AML resources end with their tag, and the buffer says how long they are") {
  const Code io = aml::Io(0x3f8, 8);
  CHECK_EQ(io, Code{0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08});
  CHECK_EQ(aml::Memory32Fixed(0xd0001000, 0x1000),
           Code{0x86, 9, 0, 1, 0x00, 0x10, 0x00, 0xd0, 0x00, 0x10, 0x00, 0x00});
  CHECK_EQ(aml::Interrupt(5), Code{0x89, 6, 0, 0x03, 1, 5, 0, 0, 0});

  const Code buffer = aml::ResourceTemplate(io);

  CHECK_EQ(Code(buffer.begin(), buffer.begin() + 4), Code{0x11, 13, 0x0a, 10});
  CHECK_EQ(Code(buffer.end() - 2, buffer.end()), Code{0x79, 0x00});
}

}  // namespace
}  // namespace forklet
