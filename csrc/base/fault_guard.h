// Reading mapped files without dying: SIGBUS under a guard becomes a flag.
//
// A mapped page that the file no longer has (it was cut), or that the disk can't give, raises SIGBUS in the thread that
// reads it. Asking the kernel first (MADV_POPULATE_READ) costs a system call a segment, nearly as much as the copy, and
// still leaves a moment in which the file can be cut. So the process handles SIGBUS: a fault inside a range that the
// faulting thread guards puts a page of zeros there and sets the guard's flag; what was read is then thrown away. Any
// other SIGBUS goes to the handler that was there before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace stoker {

/// Guards the reads of this thread for its lifetime. Guards nest. Cheap: no system call but the first one's.
class FaultGuard {
 public:
  using Bytes = std::span<const std::byte>;

  /// `mapped`: whole mappings that this thread will read.
  explicit FaultGuard(std::vector<Bytes> mapped);
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;
  ~FaultGuard();

  static constexpr size_t kNone = SIZE_MAX;

  /// The index in `mapped` of a mapping that faulted, or kNone. The bytes read from it are not the file's, and the
  /// mapping must not be used again.
  size_t faulted() const { return faulted_; }

 private:
  friend struct FaultHandler;
  std::vector<Bytes> mapped_;
  FaultGuard* outer_;
  volatile size_t faulted_ = kNone;  // written by the signal handler, in this thread
};

}  // namespace stoker
