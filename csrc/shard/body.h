// The raw bytes of an open shard as one range of memory, whose pieces become present on demand.
//
// A raw file is mapped: it has no pieces, all of it is there. A zstd file's pieces are runs of whole frames (or the
// whole file, where a frame does not state its size): each is decoded into its place in a reserved range of addresses,
// or the file is expanded once into a raw file in the cache directory and mapped. Who may load and unload pieces, and
// when, is the business of PieceCache. Errors name files; Shard puts the stream's name in front.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "base/range.h"

namespace stoker {

/// Frames of a zstd shard that has as many raw bytes are decoded together until they make up so many: a huge page of
/// x86_64, and of aarch64 with pages of 4 KiB.
constexpr uint64_t kLeastPieceBytes = uint64_t{2} << 20;

class ShardBody {
 public:
  virtual ~ShardBody() = default;

  /// The address of raw byte 0. Bytes of a piece may be read while it is present, under a FaultGuard of mapping(). A
  /// body of one piece may have it elsewhere once that is loaded; others have it always at one place.
  virtual const std::byte* data() const = 0;

  /// The mapping that reads of the body touch, or null.
  virtual const MappedFile* mapping() const { return nullptr; }

  /// A body without pieces has all its bytes; the following are of no piece then.
  virtual uint32_t num_pieces() const { return 0; }
  virtual uint32_t piece_at(uint64_t /*raw_offset*/) const { return 0; }

  /// Memory that a present piece takes, 0 for file-backed ones.
  virtual uint64_t piece_bytes(uint32_t /*piece*/) const { return 0; }

  /// Makes a piece present. Calls for one piece must not overlap. Raises CorruptShardError or SystemError.
  virtual void load(uint32_t /*piece*/) {}

  /// Gives the memory of a piece back.
  virtual void unload(uint32_t /*piece*/) {}

  /// Starts reading what a range of raw bytes is made of from disk in the background. Advice: never fails.
  virtual void will_need(Range /*raw_bytes*/) const {}
};

/// No bytes.
std::unique_ptr<ShardBody> no_body();

/// A raw file, mapped.
std::unique_ptr<ShardBody> map_raw(const File& file);

/// A zstd file decoded into memory. `raw_bytes` is what index.json says; frames that disagree raise CorruptShardError.
std::unique_ptr<ShardBody> decode_zstd(const File& file, uint64_t raw_bytes);

/// A zstd file expanded once into `raw_path` (written beside it, then renamed), which is used as it is if it is there
/// already with the right size.
std::unique_ptr<ShardBody> expand_zstd(const File& file, uint64_t raw_bytes, std::string raw_path);

}  // namespace stoker
