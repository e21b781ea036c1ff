// The shards of all streams: opened on first use, a bounded number of them kept open.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "shard/piece_cache.h"
#include "shard/schema.h"
#include "shard/shard.h"

namespace stoker {

/// What the index files say of one stream. Paths are made when a shard is opened, so that 10^5 shards are cheap.
struct StreamFiles {
  std::string name;
  std::string directory;
  bool follow_links = false;     // whether shards may be symbolic links that lead out of the directory
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

/// Which shard of which stream.
struct ShardId {
  uint32_t stream;
  uint32_t shard;
  friend bool operator==(ShardId a, ShardId b) { return a.stream == b.stream && a.shard == b.shard; }
  friend bool operator<(ShardId a, ShardId b) { return a.stream != b.stream ? a.stream < b.stream : a.shard < b.shard; }
};

/// Thread-safe. What get() returned stays open while it is held by the caller. Beyond the limits those shards are
/// closed first that nobody has asked to hold, the least recently used first; their pieces go with them.
class ShardStore {
 public:
  struct Limits {
    // A mapping each, of the 65,530 that Linux allows a process by default.
    size_t open_shards = 8192;
    // Offsets and lengths of open shards, 8 bytes a sample.
    size_t head_bytes = size_t{128} << 20;
  };

  /// `cache_bytes`: see PieceCache.
  ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes, Limits limits)
      : streams_(std::move(streams)), limits_(limits), pieces_(cache_bytes) {}
  ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes)
      : ShardStore(std::move(streams), cache_bytes, Limits()) {}

  const std::vector<StreamFiles>& streams() const { return streams_; }

  /// A shard, opened if it is not open. Raises what opening it raises.
  std::shared_ptr<const Shard> get(ShardId id);

  /// Says that a shard will be read from soon, as often as release() takes back.
  void hold(ShardId id);

  /// Returns whether the shard is still held.
  bool release(ShardId id);
  void release_all();

  PieceCache& pieces() { return pieces_; }

 private:
  struct Open {
    std::shared_ptr<const Shard> shard;
    std::list<ShardId>::iterator use;  // in uses_
  };
  using Shards = std::vector<std::shared_ptr<const Shard>>;
  std::shared_ptr<const Shard> keep(ShardId id, std::shared_ptr<const Shard> opened, Shards& closed);
  void set_held(ShardId id, bool is_held);

  const std::vector<StreamFiles> streams_;
  const Limits limits_;
  PieceCache pieces_;
  std::mutex mutex_;
  std::map<ShardId, Open> open_;       // guarded by mutex_
  std::list<ShardId> uses_;            // guarded by mutex_; keys of open_, least recently used first
  size_t head_bytes_ = 0;              // guarded by mutex_; of the shards in open_
  std::map<ShardId, uint32_t> holds_;  // guarded by mutex_
};

}  // namespace stoker
