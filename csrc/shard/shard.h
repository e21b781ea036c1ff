// One open MDS shard: its samples' places and lengths, checked once, and its raw bytes.
//
// File (little-endian): u32 N | u32 offset[N + 1], absolute, offset[N] = file size | config JSON | samples.
// Sample: u32 size of each variable column | bytes of every column, in the order of the schema.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/range.h"
#include "shard/body.h"
#include "shard/raw_reader.h"
#include "shard/sample.h"
#include "shard/schema.h"

namespace stoker {

/// What the index says of a shard, and where its file is.
struct ShardFile {
  enum class Format { kRaw, kZstd };
  std::string stream;  // its name, for errors
  std::string path;    // of the file that is there
  std::string root;    // the directory that the path must not leave by symbolic links; empty: it may
  Format format = Format::kRaw;
  uint64_t file_bytes = 0;  // of that file
  uint64_t raw_bytes = 0;   // uncompressed
  uint32_t num_samples = 0;
  std::optional<uint64_t> tokens;  // exact total, where the index knows it
  std::string expanded_path;       // kZstd: expand into this file instead of memory; empty: decode into memory
  std::shared_ptr<File> opened;    // the file, where somebody has opened it; null: it is opened by its path
};

/// Immutable but for the presence of its body's pieces; safe to share between threads. Its errors name stream and file.
class Shard {
 public:
  /// Opens the file and checks its size, sample count, offsets and token total against `file`. Reads its head only,
  /// and of a zstd file the headers of its frames and blocks, unless other variable columns force a scan. `schema` must
  /// outlive the shard. Raises CorruptShardError, SystemError.
  Shard(ShardFile file, const Schema& schema);

  /// A shard that can't be had: it has no tokens, and nothing of it can be parsed.
  static std::shared_ptr<const Shard> missing(ShardFile file, const Schema& schema);

  const std::string& stream() const { return file_.stream; }
  const std::string& path() const { return file_.path; }
  uint32_t num_samples() const { return static_cast<uint32_t>(token_ends_.size()); }

  /// Entry i is the tokens of samples 0 to i together.
  std::span<const uint32_t> token_ends() const { return token_ends_; }
  uint64_t num_tokens() const { return token_ends_.empty() ? 0 : token_ends_.back(); }
  uint32_t longest_sample() const;

  /// Calls visit(tokens) for each sample, in order, with its token columns, read from the file past the body. Raises
  /// CorruptShardError, SystemError.
  void for_each_sample(const std::function<void(const SampleTokens&)>& visit) const;

  bool has_labels() const { return schema_.has_labels(); }

  /// The samples that hold a range of the shard's tokens, which is not empty.
  Range samples_of(Range tokens) const;

  /// Where a range of samples, which is not empty, lies in the raw bytes.
  Range bytes_of(Range samples) const { return {offsets_[samples.begin], offsets_[samples.end]}; }

  /// The token columns of a sample, checked against the length that layout saw. Its bytes must be present in the body.
  /// Raises CorruptShardError.
  SampleTokens parse(uint32_t sample) const;

  /// The same of bytes that read_sample() gave.
  SampleTokens parse(uint32_t sample, std::span<const std::byte> bytes) const;

  /// The bytes of a sample, read from the file past the body: for looking at single samples, since a compressed shard
  /// is decoded up to it. Raises CorruptShardError, SystemError.
  std::vector<std::byte> read_sample(uint32_t sample) const;

  /// Asks the processor for the bytes from a token of a sample on, which will be read soon. Advice: never faults.
  void prefetch(uint32_t sample, uint32_t token) const;

  const ShardBody& body() const { return *body_; }

  /// ShardBody::load and unload, which PieceCache calls.
  void load(uint32_t piece) const;
  void unload(uint32_t piece) const { body_->unload(piece); }

  /// Makes an error of this shard: of `sample`, or of the whole. What it was expanded into is removed, if it was.
  CorruptShardError corrupt(int64_t sample, const std::string& what) const;

  /// Whether the shard must not be used for anything new: it is broken, or the store has let it go.
  bool is_retired() const { return retired_.load(std::memory_order_relaxed); }  // a hint, not an order
  void retire() const { retired_.store(true, std::memory_order_relaxed); }

  /// Whether something will be read from it soon (see ShardStore::hold).
  bool is_held() const { return is_held_.load(std::memory_order_relaxed); }  // a hint, not an order
  void set_held(bool is_held) const { is_held_.store(is_held, std::memory_order_relaxed); }

  /// Memory that the offsets and lengths take.
  size_t head_bytes() const { return (offsets_.capacity() + token_ends_.capacity()) * sizeof(uint32_t); }

 private:
  struct Missing {};
  Shard(Missing /*tag*/, ShardFile file, const Schema& schema);
  SampleTokens parse_planned(uint32_t sample, std::span<const std::byte> bytes) const;
  void read_offsets(RawReader& reader);
  void read_lengths(RawReader& reader);

  ShardFile file_;  // does not change once the shard is open
  const Schema& schema_;
  std::vector<uint32_t> offsets_;     // num_samples + 1
  std::vector<uint32_t> token_ends_;  // num_samples
  std::unique_ptr<ShardBody> body_;
  mutable std::atomic<bool> retired_ = false;
  mutable std::atomic<bool> is_held_ = false;
};

}  // namespace stoker
