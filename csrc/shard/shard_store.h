// The shards of all streams: opened on first use, a bounded number of them kept open.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "shard/piece_cache.h"
#include "shard/schema.h"
#include "shard/shard.h"

namespace stoker {

/// What the index files say of one stream. Paths are made when a shard is opened, so that 10^5 shards are cheap.
struct StreamFiles {
  std::string name;
  std::string directory;
  std::string expand_directory;  // where zstd shards are expanded; empty: they are decoded into memory
  std::vector<Schema> schemas;
  struct Entry {
    std::string raw_basename;  // relative to the directory
    std::string zip_basename;  // of the zstd file; empty: there is none
    uint32_t schema;           // index in schemas
    uint32_t num_samples;
    uint64_t raw_bytes;
    uint64_t zip_bytes;
    std::optional<uint64_t> tokens;
  };
  std::vector<Entry> shards;
};

/// Thread-safe. What get() returned stays open while it is held.
class ShardStore {
 public:
  // A mapping each, of the 65,530 that Linux allows a process by default.
  static constexpr size_t kMaxOpenShards = 8192;
  // Offsets and lengths of open shards, 8 bytes a sample.
  static constexpr size_t kMaxHeadBytes = size_t{128} << 20;

  ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes)
      : streams_(std::move(streams)), pieces_(cache_bytes) {}

  const std::vector<StreamFiles>& streams() const { return streams_; }

  /// A shard, opened if it is not open. Raises what opening it raises.
  std::shared_ptr<const Shard> get(uint32_t stream, uint32_t shard);

  PieceCache& pieces() { return pieces_; }

 private:
  struct Open {
    std::shared_ptr<const Shard> shard;
    std::list<uint64_t>::iterator use;  // in uses_
  };

  const std::vector<StreamFiles> streams_;
  PieceCache pieces_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, Open> open_;  // guarded by mutex_; by stream and shard
  std::list<uint64_t> uses_;                 // guarded by mutex_; keys of open_, least recently used first
  size_t head_bytes_ = 0;                    // guarded by mutex_; of the shards in open_
};

}  // namespace stoker
