// The shards of all streams: opened on first use, a bounded number of them kept open.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shard/piece_cache.h"
#include "shard/schema.h"
#include "shard/shard.h"
#include "shard/shard_supply.h"

namespace stoker {

/// What the index files say of one stream. Paths are made when a shard is opened, so that 10^5 shards are cheap.
struct StreamFiles {
  std::string name;
  std::string directory;
  bool follow_links = false;     // whether shards may be symbolic links that lead out of the directory
  std::string expand_directory;  // where zstd shards are expanded; empty: they are decoded into memory
  bool is_made = false;  // its files are made while the run goes on (see ShardSupply); entries lack what is of files
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

/// Thread-safe. What get() returned stays open while the caller has it. Opening a shard beyond the limits closes
/// others, the least recently used first, with their pieces.
class ShardStore {
 public:
  struct Limits {
    // A mapping each, of the 65,530 that Linux allows a process by default. Shards that are held are closed last.
    size_t open_shards = 32'768;
    // Offsets and lengths, 8 bytes a sample, of open shards that are not held.
    size_t loose_head_bytes = size_t{128} << 20;
  };

  /// `cache_bytes`: see PieceCache.
  ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes, Limits limits);
  ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes)
      : ShardStore(std::move(streams), cache_bytes, Limits()) {}

  const std::vector<StreamFiles>& streams() const { return streams_; }

  /// A shard, opened if it is not open. Waits where it is still to be made. Raises what opening or making it raises.
  std::shared_ptr<const Shard> get(ShardId id);

  /// Says that a shard will be read from soon, as often as release() takes back. It is made, where it has to be.
  void hold(ShardId id);

  /// Returns whether the shard is still held.
  bool release(ShardId id);

  /// Says that threads of this process work on the store: until unclaim(), which releases all shards too, get() raises
  /// ClosedError in a forked child.
  void claim();
  void unclaim();

  PieceCache& pieces() { return pieces_; }

  /// Whether some stream's shards are made while the run goes on; and who makes them.
  bool has_made_streams() const { return has_made_streams_; }
  bool is_made(uint32_t stream) const { return streams_[stream].is_made; }
  ShardSupply& supply() { return supply_; }

 private:
  using Uses = std::list<ShardId>;  // least recently used first
  struct Open {
    std::shared_ptr<const Shard> shard;
    Uses* uses;  // held_ or loose_
    Uses::iterator use;
  };
  using OpenShards = std::map<ShardId, Open>;
  using Shards = std::vector<std::shared_ptr<const Shard>>;
  std::shared_ptr<const Shard> open(ShardId id);
  std::shared_ptr<const Shard> keep(ShardId id, std::shared_ptr<const Shard> opened, Shards& closed);
  void file_under(Uses& uses, Open& open, ShardId id);
  void unfile(Open& open);
  void set_held(ShardId id, bool is_held);
  OpenShards::iterator next_to_close(ShardId keeping);

  const std::vector<StreamFiles> streams_;
  const bool has_made_streams_;
  const Limits limits_;
  PieceCache pieces_;
  ShardSupply supply_;
  std::mutex mutex_;

  // Guarded by mutex_.
  OpenShards open_;
  Uses held_;   // keys of open_ that holds_ has
  Uses loose_;  // the others
  size_t loose_head_bytes_ = 0;
  std::map<ShardId, uint32_t> holds_;

  static constexpr uint64_t kNobody = UINT64_MAX;
  std::atomic<uint64_t> claimed_by_ = kNobody;  // a fork generation
};

}  // namespace stoker
