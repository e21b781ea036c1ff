// Which pieces of zstd shards are in memory: pinned ones stay, the least recently used others go.
//
// Protocol. A piece is absent, loading or present. Who needs a piece pins it. The pin that finds it absent makes it
// loading and owes one load(), or an abandon() instead of it or after it has failed; pins that find it loading wait for
// whoever owes that, by means of their own (the engine keeps a list of waiting batches). A piece that is pinned and
// present stays present until its last unpin. All of it happens under one mutex, but the loading itself.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "shard/shard.h"

namespace stoker {

/// A piece of an open shard, which it keeps open.
struct Piece {
  std::shared_ptr<const Shard> shard;
  uint32_t index;
  friend bool operator<(const Piece& a, const Piece& b) {
    return a.shard != b.shard ? a.shard < b.shard : a.index < b.index;
  }
};

/// Thread-safe.
class PieceCache {
 public:
  /// Pieces that nobody pins are unloaded beyond `limit_bytes`; what is pinned may exceed it.
  explicit PieceCache(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  enum class State { kAbsent, kLoading, kPresent };

  /// Pins a piece and tells the state it was found in.
  State pin(const Piece& piece);

  /// Pins a piece if it is absent and fits without unloading another. Returns whether it did; load() is owed then.
  bool pin_if_free(const Piece& piece);

  /// Loads a pinned piece that was found absent. Raises what ShardBody::load raises; the piece is still loading then.
  void load(const Piece& piece);

  /// Makes a pinned piece that was found absent and is not loaded absent again.
  void abandon(const Piece& piece);

  void unpin(const Piece& piece);

  uint64_t present_bytes() const;

 private:
  struct Entry {
    State state = State::kAbsent;
    uint32_t pins = 0;
    std::list<Piece>::iterator idle;  // in idle_, while it is present and not pinned
  };

  State pin_locked(const Piece& piece);

  const uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::map<Piece, Entry> entries_;  // guarded by mutex_; pieces that are pinned or present
  std::list<Piece> idle_;           // guarded by mutex_; least recently used first
  uint64_t present_bytes_ = 0;      // guarded by mutex_; of present and loading pieces
};

}  // namespace stoker
