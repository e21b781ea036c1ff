// Read-only files: open, exact reads, and mappings that survive a file being cut.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/range.h"

namespace stoker {

/// What tells a file from another one that was put in its place.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size_bytes = 0;
  int64_t modified_s = 0;
  int64_t modified_ns = 0;  // of the second
  bool operator==(const FileIdentity&) const = default;
};

/// An open file descriptor for reading. Move-only; closes itself.
class File {
 public:
  /// Opens a regular file. Raises SystemError naming the path.
  explicit File(std::string path);

  /// Takes a descriptor over, which is closed in any case. `path` names it in errors. Raises the same.
  File(std::string path, int fd);
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return identity_.size_bytes; }  // when it was opened
  const FileIdentity& identity() const { return identity_; }
  int fd() const { return fd_; }

  /// Starts reading a range from the disk in the background.
  void will_need(Range bytes) const;

  /// Reads exactly `out.size()` bytes at `offset`. Raises SystemError, or CorruptShardError where the file has become
  /// shorter.
  void read_at(uint64_t offset, std::span<std::byte> out) const;

 private:
  void check();

  std::string path_;
  int fd_ = -1;
  FileIdentity identity_;
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

  /// Starts reading a range from the disk in the background.
  void will_need(Range bytes) const;

  /// Whether some page of it has been lost (see FaultGuard): the mapping must not be used any more. What this thread
  /// has read before it asks, it has read before the answer.
  bool faulted() const {
    // A read-modify-write is not moved before earlier reads, as a load may be. (TSan knows no fences.)
    return faulted_.fetch_or(0, std::memory_order_acq_rel) != 0;
  }
  void set_faulted() const { faulted_.store(1); }  // async-signal-safe: it is lock-free

 private:
  std::span<const std::byte> bytes_;
  mutable std::atomic<uint32_t> faulted_ = 0;
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
};

/// The host's page size in bytes.
size_t page_size_bytes();

}  // namespace stoker
