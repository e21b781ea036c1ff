// Reading mapped files without dying: SIGBUS under a guard becomes a flag of the mapping.
//
// A mapped page that the file no longer has (it was cut), or that the disk can't give, raises SIGBUS in the thread that
// reads it. Asking the kernel first (MADV_POPULATE_READ) costs a system call a segment, nearly as much as the copy, and
// still leaves a moment in which the file can be cut. So the process handles SIGBUS. A fault in a mapping that the
// faulting thread guards first marks the mapping as faulted, for all threads and for good, and then puts a page of
// zeros there. Whoever reads under a guard asks for the flags afterwards and throws away what was read if one is set;
// a thread that has read another thread's page of zeros sees the flag, since that was set before. Any other SIGBUS goes
// to the handler that was there before.
#pragma once

#include <vector>

namespace stoker {

class MappedFile;

/// What an error says of a file of which a guard has seen a fault.
inline constexpr char kWasCut[] = "was cut, or its disk failed, while it was being read";

/// Guards the reads of this thread for its lifetime. Guards nest. No system call but the first one's.
class FaultGuard {
 public:
  /// `mappings`: those that this thread will read; they must outlive the guard.
  explicit FaultGuard(std::vector<const MappedFile*> mappings);
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;
  ~FaultGuard();

  /// To be asked after reading: a mapping of which some page has been lost, to whatever thread, or null. Nothing that
  /// was read of it is to be trusted.
  const MappedFile* faulted() const;

 private:
  friend struct FaultHandler;
  std::vector<const MappedFile*> mappings_;
  FaultGuard* outer_;
};

}  // namespace stoker
