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
  // Where its files come from: they are there; they are supplied while the run goes on (see ShardSupply), those of the
  // index; or others that are made of them, of which the entries know the number of samples only.
  enum class Supply { kThere, kFetched, kMade };
  Supply supply = Supply::kThere;
  bool closes_unheld = false;  // a shard is closed with its last release(): somebody may want the room of its file
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

  /// A shard, opened if it is not open. Waits where it is still to be supplied. Raises what opening or supplying it
  /// raises.
  std::shared_ptr<const Shard> get(ShardId id);

  /// The same where it is open, or can be opened at once; else null. Never waits.
  std::shared_ptr<const Shard> get_if_there(ShardId id);

  bool is_open(ShardId id) const;

  /// Has a shard of a supplied stream supplied, unless it is open.
  void want(ShardId id);

  /// Says that a shard will be read from soon, as often as release() takes back. It is supplied, where it has to be.
  void hold(ShardId id);

  /// Returns whether the shard is still held.
  bool release(ShardId id);

  /// Says that threads of this process work on the store: until unclaim(), which releases all shards too, get() raises
  /// ClosedError in a forked child.
  void claim();
  void unclaim();

  PieceCache& pieces() { return pieces_; }

  /// Whether some stream's shards are supplied while the run goes on; and what supplies them.
  bool has_supplied_streams() const { return has_supplied_streams_; }
  bool is_supplied(uint32_t stream) const { return streams_[stream].supply != StreamFiles::Supply::kThere; }
  ShardSupply& supply() { return supply_; }

  /// The shards of supplied streams that are held.
  std::vector<ShardId> held() const;

 private:
  using Uses = std::list<ShardId>;  // least recently used first
  struct Open {
    std::shared_ptr<const Shard> shard;
    Uses* uses;  // held_ or loose_
    Uses::iterator use;
  };
  using OpenShards = std::map<ShardId, Open>;
  std::shared_ptr<const Shard> find_open(ShardId id);
  std::shared_ptr<const Shard> open(ShardId id, std::optional<SuppliedFile> file);
  std::shared_ptr<const Shard> open_and_keep(ShardId id, std::optional<SuppliedFile> file);
  std::shared_ptr<const Shard> keep(ShardId id, std::shared_ptr<const Shard> opened);
  void file_under(Uses& uses, Open& open, ShardId id);
  void unfile(Open& open);
  void set_held(ShardId id, bool is_held);
  OpenShards::iterator next_to_close(ShardId keeping);
  void close(OpenShards::iterator place);
  void let_go();

  const std::vector<StreamFiles> streams_;
  const bool has_supplied_streams_;
  const Limits limits_;
  PieceCache pieces_;
  ShardSupply supply_;
  mutable std::mutex mutex_;

  // Guarded by mutex_.
  OpenShards open_;
  Uses held_;   // keys of open_ that holds_ has
  Uses loose_;  // the others
  size_t loose_head_bytes_ = 0;
  std::map<ShardId, uint32_t> holds_;
  std::vector<std::shared_ptr<const Shard>> closed_;  // to be let go by the next let_go()

  static constexpr uint64_t kNobody = UINT64_MAX;
  std::atomic<uint64_t> claimed_by_ = kNobody;  // a fork generation
};

}  // namespace stoker
