// One open MDS shard: its samples' places and lengths, checked once, and its raw bytes.
//
// File (little-endian): u32 N | u32 offset[N + 1], absolute, offset[N] = file size | config JSON | samples.
// Sample: u32 size of each variable column | bytes of every column, in the order of the schema.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "shard/body.h"
#include "shard/raw_reader.h"
#include "shard/sample.h"
#include "shard/schema.h"

namespace stoker {

/// What the index says of a shard, and where its file is.
struct ShardFile {
  enum class Format { kRaw, kZstd };
  std::string path;  // of the file that is there
  Format format = Format::kRaw;
  uint64_t file_bytes = 0;  // of that file
  uint64_t raw_bytes = 0;   // uncompressed
  uint32_t num_samples = 0;
  std::optional<uint64_t> tokens;  // exact total, where the index knows it
  std::string expanded_path;       // kZstd: expand into this file instead of memory; empty: decode into memory
};

/// Immutable but for the presence of its body's pieces; safe to share between threads.
class Shard {
 public:
  /// Opens the file and checks its size, sample count, offsets and token total against `file`. Reads its head only,
  /// unless other variable columns force a scan. `schema` must outlive the shard. Raises CorruptShardError,
  /// SystemError.
  Shard(const ShardFile& file, const Schema& schema);

  const std::string& path() const { return path_; }
  uint32_t num_samples() const { return static_cast<uint32_t>(token_ends_.size()); }

  /// Entry i is the tokens of samples 0 to i together.
  std::span<const uint32_t> token_ends() const { return token_ends_; }
  uint64_t num_tokens() const { return token_ends_.empty() ? 0 : token_ends_.back(); }
  uint32_t longest_sample() const;

  struct ByteRange {
    uint64_t begin;
    uint64_t end;
  };
  /// Where samples [first, last] lie in the raw bytes.
  ByteRange bytes_of(uint32_t first, uint32_t last) const { return {offsets_[first], offsets_[last + 1]}; }

  /// The token columns of a sample, checked against the length that layout saw. Its bytes must be present in the body.
  /// Raises CorruptShardError.
  SampleTokens parse(uint32_t sample) const;

  /// The same of bytes that read_sample() gave.
  SampleTokens parse(uint32_t sample, std::span<const std::byte> bytes) const;

  ShardBody& body() const { return *body_; }

  /// The bytes of a sample, read from the file past the body: for looking at single samples, since a compressed shard
  /// is decoded up to it. Raises CorruptShardError, SystemError.
  std::vector<std::byte> read_sample(uint32_t sample) const;

  const Schema& schema() const { return schema_; }

  /// Reading the body has failed: it must not be used again, and the shard be opened anew.
  bool is_broken() const { return broken_.load(std::memory_order_relaxed); }  // a hint; the error itself is thrown
  void set_broken() const { broken_.store(true, std::memory_order_relaxed); }

  /// Memory that the offsets and lengths take.
  size_t head_bytes() const { return (offsets_.capacity() + token_ends_.capacity()) * sizeof(uint32_t); }

 private:
  void read_offsets(RawReader& reader, const ShardFile& file);
  void read_lengths(RawReader& reader);
  CorruptShardError corrupt(int64_t sample, const std::string& what) const;

  std::string path_;
  ShardFile::Format format_;
  const Schema& schema_;
  std::vector<uint32_t> offsets_;     // num_samples + 1
  std::vector<uint32_t> token_ends_;  // num_samples
  std::unique_ptr<ShardBody> body_;
  mutable std::atomic<bool> broken_ = false;
};

}  // namespace stoker
