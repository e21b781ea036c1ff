// What will be read of shards soon, in the order of need: work for a worker that has nothing else to do.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/range.h"
#include "shard/piece_cache.h"
#include "shard/shard_store.h"

namespace stoker {

/// Not thread-safe.
class LookAhead {
 public:
  /// A part of a shard will be read: in the order's things.
  void add(ShardId id, Range things);

  /// Nothing of a shard will be read any more.
  void remove(ShardId id) { parts_.erase(id); }

  /// Pieces of a shard that was opened, to be loaded when there is room.
  void add_pieces(std::vector<Piece> pieces);

  bool has_shards() const { return !shards_.empty(); }
  bool has_pieces() const { return !pieces_.empty(); }

  /// The next shard and its part; nothing if that is not needed any more. has_shards() holds.
  std::optional<std::pair<ShardId, Range>> take_shard();

  /// The next piece. has_pieces() holds.
  Piece take_piece();

  void clear();

 private:
  std::map<ShardId, Range> parts_;
  std::deque<ShardId> shards_;  // keys that parts_ has, or had
  std::deque<Piece> pieces_;
};

}  // namespace stoker
