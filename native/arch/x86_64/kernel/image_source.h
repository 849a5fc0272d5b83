#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

Error BadKernel(const std::string& name, const std::string& what);
// "0x" and lower-case digits, for messages.
std::string Hex(uint64_t value);

// Bytes that an image is read from. Lifetime: that of the call it is passed to.
class ImageSource {
 public:
  ImageSource(const ImageSource&) = delete;
  ImageSource& operator=(const ImageSource&) = delete;

  const std::string& name() const { return name_; }
  uint64_t size() const { return size_; }

  // Fills `out` from `offset` on; kBadKernel when the source is too short.
  Status Read(uint64_t offset, std::span<uint8_t> out) const;

  template <class T>
  Status ReadObject(uint64_t offset, T& out) const {
    return Read(offset, {reinterpret_cast<uint8_t*>(&out), sizeof out});
  }

 protected:
  ImageSource(std::string name, uint64_t size) : name_(std::move(name)), size_(size) {}
  ~ImageSource() = default;
  // The range has been checked against size().
  virtual Status ReadChecked(uint64_t offset, std::span<uint8_t> out) const = 0;

 private:
  std::string name_;
  uint64_t size_;
};

// A regular file, read with pread(2): mapped, it could be truncated by another
// process and raise SIGBUS in this one.
class FileSource final : public ImageSource {
 public:
  FileSource(std::string name, const UniqueFd& fd, uint64_t size)
      : ImageSource(std::move(name), size), fd_(fd.get()) {}

 private:
  Status ReadChecked(uint64_t offset, std::span<uint8_t> out) const override;
  int fd_;  // Lifetime: the UniqueFd of the constructor
};

class BufferSource final : public ImageSource {
 public:
  BufferSource(std::string name, std::span<const uint8_t> bytes)
      : ImageSource(std::move(name), bytes.size()), bytes_(bytes) {}

 private:
  Status ReadChecked(uint64_t offset, std::span<uint8_t> out) const override;
  std::span<const uint8_t> bytes_;
};

}  // namespace forklet
