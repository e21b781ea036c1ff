// Which pieces of zstd shards are in memory: pinned ones stay; of the others those go first whose shard nothing will be
// read from soon, the least recently used first.
//
// Protocol. A piece is absent, loading or present. Who needs a piece pins it. The pin that finds it absent makes it
// loading and owes one load(), or an abandon() instead of it or after it has failed; pins that find it loading wait for
// whoever owes that, by means of their own (the engine keeps a list of waiting batches). A piece that is pinned and
// present stays present until its last unpin; then it may be unloaded, at once if its shard is retired, else when room
// is needed. A piece that is being unloaded is absent already: who pins it owes a load(), which waits until its memory
// has been given back. pin() and unpin() only change states; load() makes room first, which takes as long as giving
// pages back does. One mutex guards all of it; loading and unloading happen outside.
#pragma once

#include <condition_variable>
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

  /// Pins a piece if it is absent and there is room for it, pieces of shards that are not held not counted. Returns
  /// whether it did; load() is owed then.
  bool pin_ahead(const Piece& piece);

  /// Loads a pinned piece that was found absent. Raises what Shard::load raises; the piece is still loading then.
  void load(const Piece& piece);

  /// Makes a pinned piece that was found absent and is not loaded absent again.
  void abandon(const Piece& piece);

  void unpin(const Piece& piece);

  /// Unloads the pieces of a shard that nobody pins. The shard should have been retired: then those that are pinned go
  /// with their last unpin.
  void drop(const std::shared_ptr<const Shard>& shard);

  uint64_t present_bytes() const;

 private:
  struct Entry {
    State state = State::kAbsent;
    uint32_t pins = 0;
    bool is_unloading = false;        // its memory is being given back; it must not be loaded yet
    std::list<Piece>::iterator idle;  // in idle_, while it is present and not pinned
  };
  using Entries = std::map<Piece, Entry>;

  State pin_locked(const Piece& piece);
  std::list<Piece>::iterator next_to_go();
  void unload(std::list<Piece>::iterator idle, std::unique_lock<std::mutex>& lock);

  const uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable unloaded_;
  Entries entries_;             // guarded by mutex_; pieces that are pinned, present or unloading
  std::list<Piece> idle_;       // guarded by mutex_; least recently used first
  uint64_t present_bytes_ = 0;  // guarded by mutex_; of present and loading pieces
};

}  // namespace stoker
