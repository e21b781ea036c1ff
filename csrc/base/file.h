// Read-only files: open, exact reads, and mappings that survive a file being cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace stoker {

/// An open file descriptor for reading. Move-only; closes itself.
class File {
 public:
  /// Opens a regular file. Raises SystemError naming the path.
  explicit File(std::string path);
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }  // when it was opened
  int fd() const { return fd_; }

  /// Reads exactly `out.size()` bytes at `offset`. Raises SystemError, or CorruptShardError where the file has become
  /// shorter.
  void read_at(uint64_t offset, std::span<std::byte> out) const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_bytes_ = 0;
};

/// A whole file mapped read-only. Its bytes may be read only under a FaultGuard: a file that is cut, or a disk that
/// fails, while it is mapped makes reading it raise SIGBUS.
class MappedFile {
 public:
  /// Maps the file; the descriptor is not needed afterwards. Raises SystemError.
  explicit MappedFile(const File& file);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

  /// Starts reading [begin, end) from the disk in the background.
  void will_need(uint64_t begin, uint64_t end) const;

 private:
  std::span<const std::byte> bytes_;
};

/// The host's page size in bytes.
size_t page_size_bytes();

}  // namespace stoker
