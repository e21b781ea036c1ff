// The raw bytes of a shard file from its beginning, whatever the file's compression.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/file.h"

namespace stoker {

/// Reads forward once. Not thread-safe. Raises CorruptShardError or SystemError.
class RawReader {
 public:
  virtual ~RawReader() = default;

  /// Fills `out` with the next bytes.
  virtual void read(std::span<std::byte> out) = 0;

  /// Leaves out the next `size_bytes` bytes.
  virtual void skip(uint64_t size_bytes) = 0;

  /// Checks that all has been read, the file's own checksums too.
  virtual void expect_end() = 0;
};

/// `file` must outlive the reader.
std::unique_ptr<RawReader> read_uncompressed(const File& file);
std::unique_ptr<RawReader> read_zstd(const File& file);

}  // namespace stoker
