#include "engine/look_ahead.h"

#include <algorithm>
#include <iterator>

namespace stoker {

void LookAhead::add(ShardId id, Range things) {
  const auto [place, is_new] = parts_.try_emplace(id, things);
  if (is_new) shards_.push_back(id);
  place->second = {std::min(place->second.begin, things.begin), std::max(place->second.end, things.end)};
}

void LookAhead::add_pieces(std::vector<Piece> pieces) {
  std::move(pieces.begin(), pieces.end(), std::back_inserter(pieces_));
}

std::optional<std::pair<ShardId, Range>> LookAhead::take_shard() {
  const ShardId id = shards_.front();
  shards_.pop_front();
  const auto part = parts_.extract(id);
  if (part.empty()) return std::nullopt;
  return std::pair(id, part.mapped());
}

Piece LookAhead::take_piece() {
  Piece piece = std::move(pieces_.front());
  pieces_.pop_front();
  return piece;
}

void LookAhead::clear() {
  parts_.clear();
  shards_.clear();
  pieces_.clear();
}

}  // namespace stoker
