#include "arch/x86_64/aml.h"

#include <algorithm>

#include "base/check.h"

namespace forklet::aml {

namespace {

// Opcodes, ACPI 6.4 §20.2.
constexpr uint8_t kNameOp = 0x08;
constexpr uint8_t kBytePrefix = 0x0a;
constexpr uint8_t kWordPrefix = 0x0b;
constexpr uint8_t kDwordPrefix = 0x0c;
constexpr uint8_t kStringPrefix = 0x0d;
constexpr uint8_t kQwordPrefix = 0x0e;
constexpr uint8_t kScopeOp = 0x10;
constexpr uint8_t kBufferOp = 0x11;
constexpr uint8_t kPackageOp = 0x12;
constexpr uint8_t kExtendedPrefix = 0x5b;
constexpr uint8_t kDeviceOp = 0x82;

constexpr size_t kSegmentBytes = 4;

void AppendInteger(Code& code, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) code.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

// `head`, the length of itself and the body, then the body (§20.2.4).
Code WithLength(Code head, const Code& body) {
  constexpr size_t kOneByteLimit = 0x3f;
  constexpr size_t kTwoByteLimit = 0xfff;
  if (body.size() + 1 <= kOneByteLimit) {
    head.push_back(static_cast<uint8_t>(body.size() + 1));
  } else {
    // Two bytes, the first of which says so and has the lowest four bits.
    const size_t length = body.size() + 2;
    CHECK(length <= kTwoByteLimit);
    head.push_back(static_cast<uint8_t>(1 << 6 | (length & 0xf)));
    head.push_back(static_cast<uint8_t>(length >> 4));
  }
  head.insert(head.end(), body.begin(), body.end());
  return head;
}

Code NameString(std::string_view name) {
  CHECK(!name.empty() && name.size() <= kSegmentBytes);
  Code code(name.begin(), name.end());
  code.resize(kSegmentBytes, '_');
  return code;
}

}  // namespace

Code Join(std::initializer_list<Code> parts) {
  Code code;
  for (const Code& part : parts) code.insert(code.end(), part.begin(), part.end());
  return code;
}

Code Name(std::string_view name, const Code& value) {
  return Join({{kNameOp}, NameString(name), value});
}

Code Scope(std::string_view name, const Code& body) {
  return WithLength({kScopeOp}, Join({NameString(name), body}));
}

Code Device(std::string_view name, const Code& body) {
  return WithLength({kExtendedPrefix, kDeviceOp}, Join({NameString(name), body}));
}

Code Integer(uint64_t value) {
  if (value <= 1) return {static_cast<uint8_t>(value)};  // ZeroOp, OneOp
  Code code;
  if (value <= UINT8_MAX) {
    code.push_back(kBytePrefix);
    AppendInteger(code, value, 1);
  } else if (value <= UINT16_MAX) {
    code.push_back(kWordPrefix);
    AppendInteger(code, value, 2);
  } else if (value <= UINT32_MAX) {
    code.push_back(kDwordPrefix);
    AppendInteger(code, value, 4);
  } else {
    code.push_back(kQwordPrefix);
    AppendInteger(code, value, 8);
  }
  return code;
}

Code String(std::string_view text) {
  Code code(1 + text.size() + 1);
  code.front() = kStringPrefix;
  std::copy(text.begin(), text.end(), code.begin() + 1);
  return code;
}

Code EisaId(std::string_view id) {
  // Three letters of 5 bits, then four hex digits, stored big-endian (§19.3.4).
  CHECK(id.size() == 7);
  uint32_t value = 0;
  for (size_t i = 0; i < 3; ++i) value = value << 5 | static_cast<uint32_t>(id[i] - '@');
  for (size_t i = 3; i < 7; ++i) {
    const char digit = id[i];
    value = value << 4 | static_cast<uint32_t>(digit <= '9' ? digit - '0' : digit - 'A' + 10);
  }
  Code code = {kDwordPrefix};
  AppendInteger(code, __builtin_bswap32(value), 4);
  return code;
}

Code Package(const std::vector<Code>& elements) {
  CHECK(elements.size() <= UINT8_MAX);
  Code body = {static_cast<uint8_t>(elements.size())};
  for (const Code& element : elements) body.insert(body.end(), element.begin(), element.end());
  return WithLength({kPackageOp}, body);
}

Code ResourceTemplate(const Code& descriptors) {
  // The end tag's checksum of zero means "not checked" (§6.4.2.9).
  const Code data = Join({descriptors, {0x79, 0x00}});
  return WithLength({kBufferOp}, Join({Integer(data.size()), data}));
}

Code Memory32Fixed(uint32_t address, uint32_t bytes) {
  Code code = {0x86, 9, 0, 1};  // §6.4.3.4: 9 bytes follow, writable
  AppendInteger(code, address, 4);
  AppendInteger(code, bytes, 4);
  return code;
}

Code Io(uint16_t port, uint8_t bytes) {
  Code code = {0x47, 1};  // §6.4.2.5: decodes 16 bits
  AppendInteger(code, port, 2);
  AppendInteger(code, port, 2);
  code.push_back(1);  // Alignment
  code.push_back(bytes);
  return code;
}

Code Interrupt(uint32_t gsi) {
  // §6.4.3.6: 6 bytes follow; a consumer, edge, active high, exclusive; one.
  Code code = {0x89, 6, 0, 0x03, 1};
  AppendInteger(code, gsi, 4);
  return code;
}

}  // namespace forklet::aml
